"""A deblurrer that waits for the test, and the service around it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvicorn
from fastapi.testclient import TestClient

from ldp_runtime.chain import Progress
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo
from ldp_runtime.result import Result
from ldp_runtime.service import server as server_module
from ldp_runtime.service.app import create_app
from ldp_runtime.service.server import listen
from ldp_runtime.service.settings import Settings
from ldp_runtime.service.state import Service

Served = tuple[TestClient, Service]
URL = "http://127.0.0.1:8000"
H, W = 30, 44


class FakeDeblurrer:
    """Restores by inverting the left view.

    Attributes:
        go: It waits for this before it answers.
        begun: It has begun with a pair.
        error: It raises this instead, if anything.
        axes: Of the pairs that it was given.
        checks: What their check does.
    """

    def __init__(self, *, blur_map: bool = True) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name="fake", reads_blur_map=blur_map))
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.error: Exception | None = None
        self.axes: list[str] = []
        self.checks: list[str | None] = []

    def __call__(
        self,
        left: np.ndarray,
        right: np.ndarray,
        *,
        axis: str,
        linear: bool | None,
        check: str | None,
        progress: Progress,
    ) -> Result:
        self.axes.append(axis)
        self.checks.append(check)
        progress(0.5)
        self.begun.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        blur_map = np.linspace(0, 1, left.shape[0] * left.shape[1], dtype=np.float32).reshape(left.shape[:2])
        if not self.bundle.manifest.reads_blur_map:
            blur_map = None
        logits = np.zeros((1, 1), np.float32)
        restored = np.iinfo(left.dtype).max - left
        return Result(
            restored=restored,
            blur_map=blur_map,
            blur_logits=logits,
            timings={"deblur": 0.25},
            backend="fake",
            precision="fp32",
            notes=("a note",),
        )


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
    """Waits for another thread; fails if the condition stays false."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition stayed false"
        time.sleep(0.005)


def sample(metrics: str, line: str) -> float:
    """The value of a line of the metrics, 0 where there is none."""
    return next((float(text.rsplit(" ", 1)[1]) for text in metrics.splitlines() if text.startswith(line + " ")), 0.0)


class InThread:
    """A service in a thread of this process."""

    def __init__(self, **settings: Any) -> None:
        self.deblurrer = FakeDeblurrer()
        deblurrers: Any = self.deblurrer
        self.service = Service(Settings(**settings), lambda: deblurrers)
        self.sock = listen("127.0.0.1", 0)
        self.address = self.sock.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        options = {"log_requests": False}
        self._thread = threading.Thread(target=server_module.serve, args=(self.service, self.sock), kwargs=options)

    def __enter__(self) -> InThread:
        started: Future[tuple[uvicorn.Server, asyncio.AbstractEventLoop]] = Future()
        original = server_module._Server

        class Kept(original):
            async def startup(self, *arguments: Any, **options: Any) -> None:
                await super().startup(*arguments, **options)
                started.set_result((self, asyncio.get_running_loop()))

        server_module._Server = Kept
        self._thread.start()
        self.server, self._loop = started.result(60)
        server_module._Server = original
        return self

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.deblurrer.go.set()
        if self._thread.is_alive():
            self.stop()

    def send(self, data: bytes) -> socket.socket:
        """A new connection with its first bytes, which the service finds at once, however short its limits are."""
        sent = threading.Event()
        self._loop.call_soon_threadsafe(sent.wait, 60)
        try:
            connection = socket.create_connection(self.address, timeout=60)
            connection.sendall(data)
        finally:
            sent.set()
        return connection
