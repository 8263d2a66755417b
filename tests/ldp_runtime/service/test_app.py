from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ldp_runtime.errors import BackendError
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo
from ldp_runtime.images.visualize import colour_blur_map
from ldp_runtime.service.app import PAGE
from ldp_runtime.service.gate import CHUNK
from ldp_runtime.service.state import Service
from tests.ldp_runtime.service.fakes import URL, FakeDeblurrer, H, W, check_problem, encoded, pair, served, until, view

Served = tuple[TestClient, Service]


@pytest.fixture
def deblurrer() -> FakeDeblurrer:
    return FakeDeblurrer()


@pytest.fixture
def running(deblurrer: FakeDeblurrer) -> Iterator[Served]:
    with served(deblurrer) as running:
        yield running


@pytest.fixture
def client(running: Served) -> TestClient:
    return running[0]


def sample(metrics: str, line: str) -> float:
    """The value of a line of the metrics, 0 where there is none."""
    return next((float(text.rsplit(" ", 1)[1]) for text in metrics.splitlines() if text.startswith(line + " ")), 0.0)


def finished(client: TestClient, path: str, service: Service) -> dict[str, Any]:
    """The state of a restoration once its job has ended."""
    job = service.results.get(path.rsplit("/", 1)[1])
    job.future.exception(60)
    state: dict[str, Any] = client.get(path).json()
    return state


# --- deblur -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_deblur_answers_with_the_image_and_timings(client: TestClient, dtype: Any) -> None:
    answer = client.post("/v1/deblur", files=pair(dtype=dtype))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    restored = decode_photo("answer", answer.content)
    np.testing.assert_array_equal(restored.pixels, np.iinfo(dtype).max - view(1, dtype))
    stages = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["wait", "read", "deblur", "write"]
    assert dict(stages)["deblur"] == "250.0"
    assert answer.headers["ldp-warning"] == "a note"


@pytest.mark.parametrize(("name", "suffix"), [("tiff", ".tif"), ("jpeg", ".jpg")])
def test_the_format_is_chosen(client: TestClient, name: str, suffix: str) -> None:
    answer = client.post("/v1/deblur", files=pair(), data={"format": name})
    assert answer.headers["content-type"] == f"image/{name}"
    assert f'filename="restored{suffix}"' in answer.headers["content-disposition"]
    assert decode_photo("answer", answer.content).pixels.shape == (H, W, 3)


def test_metadata_of_the_left_view_is_kept(client: TestClient) -> None:
    left = encode_photo("l.png", Photo(view(1), icc_profile=b"profile of the left view", dpi=(300.0, 300.0)))
    answer = client.post("/v1/deblur", files={"left": ("l", left), "right": ("r", encoded(shift=-1))})
    restored = decode_photo("answer", answer.content)
    assert restored.icc_profile == b"profile of the left view"
    assert restored.dpi == pytest.approx((300, 300), abs=0.1)


def test_swap_and_axis(client: TestClient, deblurrer: FakeDeblurrer) -> None:
    answer = client.post("/v1/deblur", files=pair(), data={"swap": "true", "axis": "vertical"})
    np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 255 - view(-1))
    assert deblurrer.axes == ["vertical"]


@pytest.mark.parametrize(
    ("files", "data", "words"),
    [
        ({"left": ("l.png", b"no image"), "right": ("r.png", encoded())}, {}, ["the left view", "PNG, TIFF or JPEG"]),
        ({"left": ("l.png", b""), "right": ("r.png", encoded())}, {}, ["the left view", "empty"]),
        ({"left": ("l", encoded()[:-40]), "right": ("r", encoded())}, {}, ["the left view", "damaged"]),
        (
            {"left": ("l", encoded()), "right": ("r", encoded(size=(H, W + 1)))},
            {},
            ["the right view", f"{W + 1} x {H}"],
        ),
        ({"left": ("l", encoded()), "right": ("r", encoded(dtype=np.uint16))}, {}, ["16 bits", "expected 8"]),
        (pair(dtype=np.uint16), {"format": "jpeg"}, ["JPEG holds 8 bits"]),
        ({"left": ("l", encoded())}, {}, ["right", "required"]),
        ({}, {"left": "text", "right": "text"}, ["left"]),
        (pair(), {"axis": "diagonal"}, ["axis", "'horizontal' or 'vertical'"]),
        (pair(), {"format": "gif"}, ["format", "'png', 'tiff' or 'jpeg'"]),
        (pair(), {"swap": "perhaps"}, ["swap"]),
    ],
)
def test_what_is_no_pair_is_refused(client: TestClient, files: Any, data: Any, words: list[str]) -> None:
    check_problem(client.post("/v1/deblur", files=files, data=data), 422, *words)


def test_what_the_client_called_its_files_is_not_repeated(client: TestClient) -> None:
    files = {"left": ("../../etc/<b>passwd", b"no image"), "right": ("r.png", encoded())}
    assert "passwd" not in client.post("/v1/deblur", files=files).text


def test_a_view_of_too_many_pixels_is_refused_before_it_is_decoded(
    deblurrer: FakeDeblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the view was decoded")

    monkeypatch.setattr("ldp_runtime.service.restore.decode_photo", decode)
    with served(deblurrer, max_pixels=H * W - 1) as (client, _):
        for suffix in (".png", ".tif", ".jpg"):
            answer = client.post("/v1/deblur", files=pair(suffix))
            check_problem(answer, 422, f"{W} x {H} pixels", "--max-megapixels")


def test_errors_of_the_restoration(client: TestClient, deblurrer: FakeDeblurrer) -> None:
    for error, status, words in (
        (BackendError("the backend failed; try another"), 500, "the backend failed"),
        (MemoryError(), 503, "out of memory"),
        (RuntimeError("secret"), 500, "a bug in ldp"),
    ):
        deblurrer.error = error
        answer = client.post("/v1/deblur", files=pair())
        check_problem(answer, status, words)
        assert "secret" not in answer.text
    deblurrer.error = None
    assert client.post("/v1/deblur", files=pair()).status_code == 200


# --- limits of uploads --------------------------------------------------------------------------------------


def test_an_upload_that_is_too_large_by_its_header_is_not_read(deblurrer: FakeDeblurrer) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with served(deblurrer, max_upload=1000) as (client, _):
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1001"}
        check_problem(client.post("/v1/deblur", content=body(), headers=headers), 413, "1000 bytes", "--max-upload")


def test_an_upload_that_turns_out_too_large_is_refused(deblurrer: FakeDeblurrer) -> None:
    with served(deblurrer, max_upload=1000) as (client, service):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        chunks = iter([b'--x\r\nContent-Disposition: form-data; name="left"; filename="l"\r\n\r\n', *[b"a" * 400] * 3])
        check_problem(client.post("/v1/deblur", content=chunks, headers=headers), 413, "1000 bytes")
        assert service.uploads.reading == 0


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="left"; filename="l"\r\n'),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 9000 + b": b\r\n\r\n--x--\r\n"),
    ],
)
def test_a_malformed_form_is_the_clients_error(client: TestClient, content_type: str, body: bytes) -> None:
    answer = client.post("/v1/deblur", content=body, headers={"Content-Type": content_type})
    assert answer.status_code in (400, 422), answer.text
    check_problem(answer, answer.status_code)


def test_a_form_with_too_much_in_it_is_refused(client: TestClient) -> None:
    third = [("left", ("l", encoded())), ("right", ("r", encoded())), ("more", ("m", b"x"))]
    check_problem(client.post("/v1/deblur", files=third), 400, "Too many files")
    fields = {f"field{i}": "x" for i in range(9)}
    check_problem(client.post("/v1/deblur", files=pair(), data=fields), 400, "Too many fields")


# --- restorations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_restoration_keeps_each_picture(running: Served, dtype: Any) -> None:
    client, service = running
    answer = client.post("/v1/restorations", files=pair(dtype=dtype))
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    assert path == f"/v1/restorations/{answer.json()['id']}"
    state = finished(client, path, service)
    assert state["state"] == "done"
    assert (state["report"]["width"], state["report"]["height"]) == (W, H)
    assert state["report"]["bits"] == 8 * np.dtype(dtype).itemsize
    assert state["report"]["warnings"] == ["a note"]
    pictures = {name: client.get(link) for name, link in state["links"].items()}
    shown = {name: decode_photo(name, picture.content).pixels for name, picture in pictures.items()}
    np.testing.assert_array_equal(shown["image"], np.iinfo(dtype).max - view(1, dtype))
    center = np.rint((view(1, dtype).astype(float) + view(-1, dtype)) / 2)
    for name, expected in (("before", center), ("after", shown["image"].astype(float))):
        assert shown[name].dtype == np.uint8
        np.testing.assert_allclose(shown[name], expected * (255 / np.iinfo(dtype).max), atol=0.51)
    ramp = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    np.testing.assert_array_equal(shown["blur-map"], colour_blur_map(ramp))
    for picture in pictures.values():
        assert picture.headers["cache-control"] == "no-store"


def test_states_and_places_in_the_queue(running: Served, deblurrer: FakeDeblurrer) -> None:
    client, service = running
    deblurrer.go.clear()
    first, second, third = (client.post("/v1/restorations", files=pair()).headers["location"] for _ in range(3))
    assert deblurrer.begun.wait(60)
    assert client.get(first).json()["state"] == "running"
    assert (client.get(second).json()["state"], client.get(second).json()["position"]) == ("waiting", 1)
    assert client.get(third).json()["position"] == 2
    check_problem(client.get(f"{third}/image"), 409, "no image")

    assert client.delete(second).status_code == 204
    check_problem(client.get(second), 404, "no such restoration")
    assert client.get(third).json()["position"] == 1
    deblurrer.go.set()
    assert finished(client, third, service)["state"] == "done"
    assert len(deblurrer.axes) == 2  # the second was never begun


def test_a_failed_restoration_says_why(running: Served) -> None:
    client, service = running
    files = {"left": ("l", b"no image"), "right": ("r", encoded())}
    path = client.post("/v1/restorations", files=files).headers["location"]
    state = finished(client, path, service)
    assert state["state"] == "failed"
    assert state["problem"]["status"] == 422
    assert "the left view" in state["problem"]["detail"]
    check_problem(client.get(f"{path}/image"), 409, "no image")


@pytest.mark.parametrize(
    "path", ["/v1/restorations/none", "/v1/restorations/none/image", "/v1/restorations/..%2f..%2fimage"]
)
def test_an_unknown_restoration(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404)


# --- the queue ----------------------------------------------------------------------------------------------


def test_a_full_queue_answers_with_429_before_it_reads_the_upload(deblurrer: FakeDeblurrer) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    deblurrer.go.clear()
    with served(deblurrer, queue=2) as (client, service):
        paths = [client.post("/v1/restorations", files=pair()).headers["location"]]
        assert deblurrer.begun.wait(60)
        paths += [client.post("/v1/restorations", files=pair()).headers["location"] for _ in range(2)]
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = client.post("/v1/deblur", content=body(), headers=headers)
        check_problem(answer, 429, "2 pairs wait")
        assert int(answer.headers["retry-after"]) >= 1
        text = client.get("/metrics").text
        assert sample(text, "ldp_queue_waiting") == 2
        assert sample(text, "ldp_queue_running") == 1
        deblurrer.go.set()
        for path in paths:
            assert finished(client, path, service)["state"] == "done"
        assert client.post("/v1/deblur", files=pair()).status_code == 200


def test_a_pair_that_waits_too_long_is_given_up(deblurrer: FakeDeblurrer) -> None:
    deblurrer.go.clear()
    with served(deblurrer) as (client, service):
        client.post("/v1/restorations", files=pair())
        assert deblurrer.begun.wait(60)
        service.settings = replace(service.settings, time_limit=0.3)
        answer = client.post("/v1/deblur", files=pair())
        check_problem(answer, 503, "no worker was free")
        assert answer.headers["retry-after"]
        assert service.queue.waiting == 0


def test_a_restoration_that_takes_too_long_is_answered_with_504(deblurrer: FakeDeblurrer) -> None:
    deblurrer.go.clear()
    with served(deblurrer, time_limit=3) as (client, _):
        check_problem(client.post("/v1/deblur", files=pair()), 504, "--time-limit")


def test_a_stopping_service_takes_nothing_new(running: Served, deblurrer: FakeDeblurrer) -> None:
    client, service = running
    deblurrer.go.clear()
    client.post("/v1/restorations", files=pair())
    assert deblurrer.begun.wait(60)
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(client.post("/v1/deblur", files=pair())))
    thread.start()
    until(lambda: service.queue.waiting == 1)
    assert client.get("/v1/health/ready").status_code == 200
    service.queue.close()
    thread.join(60)
    check_problem(waiting[0], 503, "shutting down")
    check_problem(client.post("/v1/deblur", files=pair()), 503, "shutting down")
    assert client.get("/v1/health/ready").status_code == 503
    assert client.get("/v1/health").json()["status"] == "stopping"


# --- the gate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "127.8.9.1", "[::1]:8000"])
def test_loopback_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", "[::1", "", "localhost@evil"]
)
def test_other_names_are_not(client: TestClient, host: str) -> None:
    for path in ("/", "/v1/health", "/v1/deblur"):
        check_problem(client.get(path, headers={"Host": host}), 421, "localhost")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1.evil"])
def test_other_pages_may_send_nothing(client: TestClient, origin: str) -> None:
    answer = client.post("/v1/deblur", files=pair(), headers={"Origin": origin})
    check_problem(answer, 403, "another site")
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_may_send(client: TestClient) -> None:
    assert client.post("/v1/deblur", files=pair(), headers={"Origin": URL}).status_code == 200


def test_the_token_is_asked_for(deblurrer: FakeDeblurrer) -> None:
    token = "a-token-of-16-letters"
    with served(deblurrer, token=token) as (client, _):
        for headers in (
            {},
            {"Authorization": token},
            {"Authorization": f"Bearer {token}x"},
            {"Authorization": "Bearer"},
        ):
            for path in ("/v1/limits", "/metrics", "/v1/restorations/x", "/nothing"):
                answer = client.get(path, headers=headers)
                check_problem(answer, 401, "Authorization")
                assert answer.headers["www-authenticate"] == "Bearer"
            check_problem(client.post("/v1/deblur", files=pair(), headers=headers), 401)
        for path in (*PAGE, "/v1/health", "/openapi.json"):
            assert client.get(path, headers={"Host": "photos.example"}).status_code == 200
        right = {"Authorization": f"Bearer {token}", "Host": "photos.example"}
        assert client.post("/v1/deblur", files=pair(), headers=right).status_code == 200
        schema = client.get("/openapi.json").json()
        assert "HTTPBearer" in schema["components"]["securitySchemes"]
        assert schema["paths"]["/v1/deblur"]["post"]["security"] == [{"HTTPBearer": []}]


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/nothing", "/v1/health", "/v1/restorations/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


# --- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/page.js", "/../pyproject.toml", "/%2e%2e/app.py", "/docs", "/redoc", "/index.html"],
)
def test_no_other_path_reaches_a_file(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404)


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path, (_, media_type) in PAGE.items():
        answer = client.get(path)
        assert answer.headers["content-type"] == media_type
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text


def test_limits_are_told(deblurrer: FakeDeblurrer) -> None:
    with served(deblurrer, max_upload=5, max_pixels=6, time_limit=7, keep_seconds=8) as (client, _):
        expected = {"max_upload": 5, "max_pixels": 6, "time_limit": 7, "keep_seconds": 8}
        assert client.get("/v1/limits").json() == expected


def test_metrics_count_by_outcome(client: TestClient) -> None:
    client.post("/v1/deblur", files=pair())
    client.post("/v1/deblur", files={"left": ("l", b"no image"), "right": ("r", encoded())})
    client.get("/nothing/of/that/name")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    route = 'ldp_http_requests_total{method="POST",route="/v1/deblur",status="%s"}'
    assert sample(text, route % 200) == 1
    assert sample(text, route % 422) == 1
    assert sample(text, 'ldp_http_requests_total{method="GET",route="other",status="404"}') == 1
    assert sample(text, 'ldp_restorations_total{outcome="restored"}') == 1
    assert sample(text, 'ldp_restorations_total{outcome="refused"}') == 1
    assert sample(text, 'ldp_stage_seconds_sum{stage="deblur"}') == 0.25
    assert sample(text, "ldp_uploads_reading") == 0
    assert sample(text, "process_resident_memory_bytes") > 0


def test_large_answers_go_out_in_chunks(running: Served) -> None:
    client, _ = running
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 400, 3), dtype=np.uint8)
    data = encode_photo("l.png", Photo(noise))
    answer = client.post("/v1/deblur", files={"left": ("l", data), "right": ("r", data)})
    assert len(answer.content) > 2 * CHUNK
    np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 255 - noise)
