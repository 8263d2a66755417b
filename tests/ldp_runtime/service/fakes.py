"""A deblurrer that a test holds up and lets go, and the service around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo
from ldp_runtime.result import Result
from ldp_runtime.service.app import create_app
from ldp_runtime.service.settings import Settings
from ldp_runtime.service.state import Service

URL = "http://127.0.0.1:8000"
H, W = 30, 44


class FakeDeblurrer:
    """Restores by inverting the left view.

    Attributes:
        go: It waits for this before it answers.
        begun: It has begun with a pair.
        error: What it raises instead, if anything.
        axes: Of the pairs that it was given.
    """

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name="fake"))
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.error: Exception | None = None
        self.axes: list[str] = []

    def __call__(self, left: np.ndarray, right: np.ndarray, *, axis: str) -> Result:
        self.axes.append(axis)
        self.begun.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        blur_map = np.linspace(0, 1, left.shape[0] * left.shape[1], dtype=np.float32).reshape(left.shape[:2])
        logits = np.zeros((1, 1), np.float32)
        restored = np.iinfo(left.dtype).max - left
        return Result(blur_map, logits, {"deblur": 0.25}, "fake", "fp32", restored, notes=("a note",))


@contextmanager
def served(deblurrer: FakeDeblurrer, **settings: Any) -> Iterator[tuple[TestClient, Service]]:
    """A client of a service with that deblurrer."""
    deblurrers: Any = deblurrer
    service = Service(Settings(**settings), lambda: deblurrers)
    try:
        with TestClient(create_app(service), base_url=URL, raise_server_exceptions=False) as client:
            yield client, service
    finally:
        deblurrer.go.set()
        service.queue.close()
        assert service.queue.join(60)


def view(shift: int = 0, dtype: Any = np.uint8, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """A view with a gradient and blocks: ``(h, w, 3)``."""
    top = np.iinfo(dtype).max
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([x / size[1], y / size[0], ((x + shift) // 6 + y // 6) % 2], axis=2)
    return np.rint(image * top).astype(dtype)


def encoded(suffix: str = ".png", shift: int = 0, **fields: Any) -> bytes:
    """The content of a file with a view."""
    return encode_photo(f"view{suffix}", Photo(view(shift, **fields)))


def pair(suffix: str = ".png", **fields: Any) -> dict[str, Any]:
    """The files of a form."""
    return {
        "left": (f"left{suffix}", encoded(suffix, 1, **fields)),
        "right": (f"right{suffix}", encoded(suffix, -1, **fields)),
    }


def check_problem(answer: Any, status: int, *words: str) -> None:
    """Asserts that an answer is a problem of that status with these words in its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert "\n" not in problem["detail"]
    for word in words:
        assert word in problem["detail"], problem


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does; fails if it does not come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
