"""The page in a real Chromium, on the real service around a deblurrer that inverts."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from ldp_runtime.images.photo import decode_photo
from ldp_runtime.service.app import create_app
from ldp_runtime.service.server import listen
from ldp_runtime.service.settings import Settings
from ldp_runtime.service.state import Service
from tests.ldp_runtime.service.fakes import FakeDeblurrer, H, W, encoded, view

pytestmark = pytest.mark.browser

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def deblurrer() -> FakeDeblurrer:
    return FakeDeblurrer()


@contextmanager
def in_thread(deblurrer: FakeDeblurrer, token: str | None = None) -> Iterator[str]:
    """A service in a thread of this process; yields its URL."""
    deblurrers: Any = deblurrer
    service = Service(Settings(token=token), lambda: deblurrers)
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    deblurrer.go.set()
    server.should_exit = True
    thread.join(60)
    service.queue.close()


@pytest.fixture(scope="module")
def url(deblurrer: FakeDeblurrer) -> Iterator[str]:
    with in_thread(deblurrer) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Watch:
    """What a page asked for and what it complained about."""

    def __init__(self, page: Any) -> None:
        self.urls: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch = page.watch = Watch(page)
    page.goto(url)
    page.get_by_text("Service ready").wait_for()
    yield page
    context.close()
    origins = {re.sub(r"^(blob:)?(http://[^/]*)/.*$", r"\2", each) for each in watch.urls}
    assert origins == {url}
    assert watch.complaints == []


def choose(page: Any, suffix: str = ".png", **fields: Any) -> None:
    for name, shift in (("left", 1), ("right", -1)):
        content = encoded(suffix, shift, **fields)
        file = {"name": f"photo_{name}{suffix}", "mimeType": "image/png", "buffer": content}
        page.locator(f"#{name}").set_input_files(file)


def restore(page: Any) -> None:
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("Done.").wait_for()


def pixels(page: Any) -> np.ndarray:
    """What the stage shows, ``(h, w, 3)``."""
    return decode_photo("screenshot", page.locator("#stage").screenshot()).pixels


def download(page: Any, name: str) -> tuple[str, bytes]:
    with page.expect_download() as started:
        page.get_by_role("link", name=name).click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def test_a_pair_is_restored_shown_compared_and_saved(page: Any) -> None:
    choose(page)
    restore(page)
    assert "44 × 30 px, 8 bits" in page.locator("#summary").inner_text()
    assert "A note." in page.locator("#warnings").inner_text()

    # The slider, by keyboard alone.
    slider = page.get_by_role("slider", name="Share of the picture")
    slider.focus()
    middle = pixels(page)
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuenow") == "0"
    restored = pixels(page)
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuenow") == "100"
    before = pixels(page)
    page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuenow") == "98"
    quarter = middle.shape[1] // 4
    side = (slice(300, 310), slice(quarter, quarter + 10))  # away from the slider and the labels
    assert not np.array_equal(before[side], restored[side])
    np.testing.assert_array_equal(middle[side], before[side])
    side = (slice(300, 310), slice(3 * quarter, 3 * quarter + 10))
    np.testing.assert_array_equal(middle[side], restored[side])

    # The slider, by pointer.
    stage = page.locator("#stage").bounding_box()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 20, stage["y"] + 100)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.3, stage["y"] + 120)
    page.mouse.up()
    assert slider.get_attribute("aria-valuenow") == "30"

    # The blur map above, by keyboard.
    page.get_by_role("slider", name="Blur map").focus()
    page.keyboard.press("End")
    covered = pixels(page)
    assert not np.array_equal(covered[side], restored[side])
    assert page.get_by_role("slider", name="Blur map").get_attribute("aria-valuetext") == "100 %"
    page.keyboard.press("Home")

    # Zoom.
    for name, width in (("100 %", W), ("200 %", 2 * W)):
        page.get_by_role("button", name=name).press("Enter")
        assert page.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
        assert page.locator("#after").bounding_box()["width"] == pytest.approx(width)
    page.get_by_role("button", name="Fit").press("Enter")
    assert page.locator("#after").bounding_box()["width"] > 10 * W

    # Downloads are what the API gives.
    name, content = download(page, "Download image")
    assert name == "photo_left-restored.png"
    np.testing.assert_array_equal(decode_photo(name, content).pixels, 255 - view(1))
    form = {key: {"name": key, "mimeType": "image/png", "buffer": encoded(shift=shift)} for key, shift in SIDES}
    assert page.request.post(f"{page.url}v1/deblur", multipart=form).body() == content
    name, content = download(page, "Download blur map")
    assert name == "photo_left-blur-map.png"
    assert decode_photo(name, content).pixels.shape == (H, W, 3)


SIDES = (("left", 1), ("right", -1))


def test_16_bit_tiff_files_are_shown_too(page: Any) -> None:
    choose(page, ".tif", dtype=np.uint16)
    page.get_by_label("Save as").select_option("tiff")
    restore(page)
    assert "16 bits" in page.locator("#summary").inner_text()
    assert page.evaluate("document.getElementById('before').naturalWidth") == W
    name, content = download(page, "Download image")
    assert name == "photo_left-restored.tif"
    np.testing.assert_array_equal(decode_photo(name, content).pixels, 65535 - view(1, np.uint16))


def test_dropped_files_find_their_places(page: Any) -> None:
    page.evaluate(
        """async ([left, right]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(right)], "IMG_1_r.png", {type: "image/png"}));
            transfer.items.add(new File([new Uint8Array(left)], "IMG_1_l.png", {type: "image/png"}));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.getElementById("drop").dispatchEvent(
                    new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
            }
        }""",
        [list(encoded(shift=1)), list(encoded(shift=-1))],
    )
    names = "['left', 'right'].map((id) => document.getElementById(id).files[0].name)"
    assert page.evaluate(names) == ["IMG_1_l.png", "IMG_1_r.png"]
    page.get_by_role("button", name="Exchange left and right").click()
    assert page.evaluate(names) == ["IMG_1_r.png", "IMG_1_l.png"]
    page.get_by_role("button", name="Exchange left and right").click()
    restore(page)
    _, content = download(page, "Download image")
    np.testing.assert_array_equal(decode_photo("image", content).pixels, 255 - view(1))


def test_errors_are_told_and_work_can_be_cancelled(page: Any, deblurrer: FakeDeblurrer) -> None:
    page.get_by_role("button", name="Restore").click()
    assert page.get_by_role("alert").inner_text() == "Choose both views first."
    choose(page)
    page.locator("#right").set_input_files({"name": "r.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("The right view is not a PNG, TIFF or JPEG file").wait_for()
    deblurrer.go.clear()
    choose(page)
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("Restoring…").wait_for()
    page.get_by_role("button", name="Cancel").click()
    deblurrer.go.set()
    page.get_by_text("Cancelled.").wait_for()
    restore(page)


def test_a_token_comes_with_the_address_or_is_asked_for(browser: Any) -> None:
    token = "a-token-of-16-letters"
    with in_thread(FakeDeblurrer(), token) as url:
        for given in (True, False):
            context = browser.new_context()
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.goto(f"{url}/#token={token}" if given else url)
            if not given:
                page.get_by_text("Needs a token").wait_for()
                page.get_by_label("Token of this service").fill(token)
                page.get_by_role("button", name="Use it").click()
            page.get_by_text("Service ready").wait_for()
            assert page.evaluate("location.hash") == ""
            choose(page)
            restore(page)
            _, content = download(page, "Download image")
            np.testing.assert_array_equal(decode_photo("image", content).pixels, 255 - view(1))
            context.close()


def test_the_keyboard_reaches_every_control_and_axe_finds_nothing(page: Any) -> None:
    choose(page)
    restore(page)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(40):  # twice around
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.matches(':focus-visible')"
        )
    wanted = "left exchange right axis format restore fit full double opacity save-image save-map pan slider summary"
    assert [each for each in reached[reached.index("left") :] if each in wanted.split()][:15] == wanted.split()

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        violations = axe.run(page).response["violations"]
        found = [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
        assert found == [], found
