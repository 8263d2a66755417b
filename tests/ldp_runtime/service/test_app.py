import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ldp_runtime.errors import BackendError
from ldp_runtime.images.photo import decode_photo
from ldp_runtime.images.visualize import colour_blur_map
from ldp_runtime.service.app import PAGE, create_app
from ldp_runtime.service.state import Service
from tests.ldp_runtime.service.fakes import (
    FakeDeblurrer,
    H,
    Served,
    W,
    check_problem,
    encoded,
    pair,
    sample,
    served,
    until,
    view,
)

TOKEN = "a-token-of-16-letters"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def finished(client: TestClient, path: str, service: Service) -> dict[str, Any]:
    """The state of a restoration once its job has ended."""
    job = service.results.get(path.rsplit("/", 1)[1])
    job.future.exception(60)
    state: dict[str, Any] = client.get(path).json()
    return state


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
    assert state["report"]["blur_map"] is True
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


def test_without_a_blur_map_there_is_none_to_fetch() -> None:
    with served(FakeDeblurrer(blur_map=False)) as (client, service):
        path = client.post("/v1/restorations", files=pair()).headers["location"]
        state = finished(client, path, service)
        assert state["report"]["blur_map"] is False
        assert state["links"].keys() == {"image", "before", "after"}
        check_problem(client.get(f"{path}/blur-map"), 404, "has no blur map", "its network reads none")
        assert client.get(f"{path}/image").status_code == 200


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
        check_problem(answer, 429, "the queue is full with 2 pairs")
        assert int(answer.headers["retry-after"]) >= 1
        text = client.get("/metrics").text
        assert sample(text, "ldp_queue_waiting") == 2
        assert sample(text, "ldp_queue_running") == 1
        deblurrer.go.set()
        for path in paths:
            assert finished(client, path, service)["state"] == "done"
        assert client.post("/v1/deblur", files=pair()).status_code == 200


def test_a_pair_that_waits_too_long_is_given_up(running: Served, deblurrer: FakeDeblurrer) -> None:
    client, service = running
    deblurrer.go.clear()
    client.post("/v1/restorations", files=pair())
    assert deblurrer.begun.wait(60)
    service.settings = replace(service.settings, time_limit=0.0)
    answer = client.post("/v1/deblur", files=pair())
    check_problem(answer, 503, "no worker was free")
    assert answer.headers["retry-after"]
    assert service.queue.waiting == 0


def test_a_restoration_that_takes_too_long_is_answered_with_504(
    running: Served, deblurrer: FakeDeblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, service = running
    deblurrer.go.clear()
    submit = service.submit

    def submit_late(*arguments: Any, **options: Any) -> Any:
        job = submit(*arguments, **options)
        assert deblurrer.begun.wait(60)
        job.deadline = 0.0  # over, as soon as it has begun
        return job

    monkeypatch.setattr(service, "submit", submit_late)
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


def test_limits_are_stated(deblurrer: FakeDeblurrer) -> None:
    with served(deblurrer, max_upload=5, max_pixels=6, time_limit=7, keep_seconds=8) as (client, _):
        expected = {"max_upload": 5, "max_pixels": 6, "time_limit": 7, "keep_seconds": 8}
        assert client.get("/v1/limits").json() == expected


@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_answers_are_as_described(examples: int) -> None:
    operations = []
    with served(FakeDeblurrer(), token=TOKEN) as (_, service):
        schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
        for found in schema.get_all_operations():
            operation = found.ok()
            operations.append(f"{operation.method.upper()} {operation.path}")

            @effort(examples)
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

            check()
    assert {"POST /v1/deblur", "POST /v1/restorations", "GET /v1/restorations/{id}/{file}"} <= set(operations)


def effort(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
