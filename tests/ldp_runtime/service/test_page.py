"""The page in a real Chromium, on the real service around a deblurrer that inverts."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.images.photo import decode_photo
from ldp_runtime.images.raw import develop
from tests.ldp_runtime.images.raw_files import small_dng
from tests.ldp_runtime.service.fakes import H, InThread, W, encoded, view

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
def service() -> Iterator[InThread]:
    with InThread() as service:
        yield service


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
    """The requests and the errors of a page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.urls: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    context = browser.new_context(viewport={"width": 1000, "height": 800}, accept_downloads=True)
    context.set_default_timeout(60_000)
    return context


@pytest.fixture(scope="module")
def watched(context: Any) -> Watch:
    return Watch(context.new_page())


@pytest.fixture
def page(watched: Watch, service: InThread) -> Iterator[Any]:
    """The service's page, loaded anew; nothing comes from elsewhere, and nothing fails on it."""
    watched.page.goto(service.url)
    watched.page.get_by_text("Service ready").wait_for()
    yield watched.page
    origins = {re.sub(r"^(blob:)?(http://[^/]*)/.*$", r"\2", each) for each in watched.urls}
    assert origins == {service.url}
    assert watched.errors == []


def choose(page: Any, suffix: str = ".png", **fields: Any) -> None:
    for name, shift in (("left", 1), ("right", -1)):
        content = encoded(suffix, shift, **fields)
        file = {"name": f"photo_{name}{suffix}", "mimeType": "image/png", "buffer": content}
        page.locator(f"#{name}").set_input_files(file)


def restore(page: Any) -> None:
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("Done.").wait_for()


def hold(page: Any, path: Any) -> list[Any]:
    """The requests for a path, which wait for ``continue_``."""
    held: list[Any] = []
    page.route(path, lambda route: held.append(route))
    return held


def wait_for(page: Any, held: list[Any]) -> None:
    while not held:
        page.wait_for_timeout(10)


def cancel_and_delete(page: Any, then: Callable[[], None] = lambda: None) -> None:
    """Cancels a restoration, does what comes ``then``, and waits until the service has deleted it."""
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
        page.get_by_role("button", name="Cancel").click()
        then()
    assert deleted.value.status == 204
    assert page.locator("#status").inner_text() == "Cancelled."


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


def test_a_raw_photo_holds_both_views(page: Any) -> None:
    pytest.importorskip("rawpy")
    data = small_dng()
    left, right = develop("a", data)
    file = {"name": "IMG_1.DNG", "mimeType": "image/x-adobe-dng", "buffer": data}
    page.locator("#left").set_input_files(file)
    restore(page)
    assert "40 × 32 px, 16 bits" in page.locator("#summary").inner_text()
    assert "which side its second frame is" in page.locator("#warnings").inner_text()
    name, content = download(page, "Download image")
    assert name == "IMG_1-restored.png"
    np.testing.assert_array_equal(decode_photo(name, content).pixels, 65535 - left.pixels)
    page.get_by_role("button", name="Exchange left and right").click()
    restore(page)
    _, content = download(page, "Download image")
    np.testing.assert_array_equal(decode_photo(name, content).pixels, 65535 - right.pixels)


def test_dropped_files_are_assigned_to_their_side(page: Any) -> None:
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


def test_errors_are_shown_and_a_restoration_can_be_cancelled(page: Any, service: InThread) -> None:
    page.get_by_role("button", name="Restore").click()
    assert page.get_by_role("alert").inner_text() == "Choose both views first."
    choose(page)
    page.locator("#right").set_input_files({"name": "r.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("The right view is not a PNG, TIFF, JPEG, PGM or PPM file").wait_for()
    service.deblurrer.go.clear()
    choose(page)
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("Restoring: 50 %").wait_for()
    page.get_by_role("button", name="Cancel").click()
    service.deblurrer.go.set()
    page.get_by_text("Cancelled.").wait_for()
    restore(page)


def test_an_error_stays_when_the_page_hears_from_the_service_after_it(page: Any) -> None:
    held = hold(page, "**/v1/limits")
    page.reload()
    wait_for(page, held)
    page.get_by_role("button", name="Restore").click()
    page.get_by_role("alert").wait_for()
    with page.expect_response("**/v1/limits"):
        held[0].continue_()
    page.unroute("**/v1/limits")
    page.get_by_text("Service ready").wait_for()
    assert page.get_by_role("alert").inner_text() == "Choose both views first."


def test_another_pair_may_follow_at_once_when_one_is_cancelled(page: Any) -> None:
    choose(page)
    held = hold(page, re.compile("/v1/restorations/[^/]+$"))
    page.get_by_role("button", name="Restore").click()
    wait_for(page, held)
    page.get_by_role("button", name="Cancel").click()
    assert page.locator("#status").inner_text() == "Cancelled."
    page.unroute_all()
    held = hold(page, "**/v1/restorations")
    page.get_by_role("button", name="Restore").click()
    wait_for(page, held)
    assert page.get_by_role("progressbar", name="Upload").is_visible()
    held[0].continue_()
    page.get_by_text("Done.").wait_for()
    assert page.get_by_role("alert").is_hidden()
    page.unroute_all()


def test_a_result_stays_when_the_next_is_cancelled_while_its_pictures_come(page: Any) -> None:
    choose(page)
    restore(page)
    page.get_by_role("button", name="Exchange left and right").click()
    held = hold(page, "**/before")
    with page.expect_response("**/image"):  # one picture comes, another does not
        page.get_by_role("button", name="Restore").click()
        wait_for(page, held)
    cancel_and_delete(page)
    page.unroute_all()
    _, content = download(page, "Download image")
    np.testing.assert_array_equal(decode_photo("image", content).pixels, 255 - view(1))


def test_a_pair_that_is_cancelled_before_the_service_has_named_it_is_deleted(
    page: Any, service: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, go = service.service.submit, threading.Event()

    def submit_late(*arguments: Any, **options: Any) -> Any:
        assert go.wait(60)
        return submit(*arguments, **options)

    monkeypatch.setattr(service.service, "submit", submit_late)
    choose(page)
    page.get_by_role("button", name="Restore").click()
    page.locator("#progress[value='1']").wait_for()  # all is sent
    cancel_and_delete(page, go.set)


def test_without_a_blur_map_its_controls_are_hidden(page: Any, service: InThread) -> None:
    choose(page)
    manifest = service.deblurrer.bundle.manifest
    for manifest.reads_blur_map in (False, True):
        restore(page)
        for control in (page.get_by_label("Blur map", exact=True), page.get_by_role("link", name="Download blur map")):
            assert control.is_visible() is manifest.reads_blur_map
        assert page.locator("#blur-map").is_visible() is manifest.reads_blur_map
        choose(page)
        page.get_by_text("Done.").wait_for(state="hidden")


def test_a_token_comes_with_the_address_or_is_asked_for(context: Any) -> None:
    token = "a-token-of-16-letters"
    with InThread(token=token) as service:
        for given in (True, False):
            page = context.new_page()
            page.goto(f"{service.url}/#token={token}" if given else service.url)
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


def test_the_keyboard_reaches_every_control_and_axe_finds_nothing(page: Any) -> None:
    choose(page)
    restore(page)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(42):  # twice around
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.matches(':focus-visible')"
        )
    wanted = "left exchange right axis check format restore fit full double opacity save-image save-map pan slider"
    wanted += " summary"
    assert [each for each in reached[reached.index("left") :] if each in wanted.split()][:16] == wanted.split()

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        violations = axe.run(page).response["violations"]
        found = [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
        assert found == [], found
