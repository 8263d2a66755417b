"""Runs the application on uvicorn: connections time out, and running work is finished at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ldp_runtime.errors import LDPError
from ldp_runtime.service.app import create_app
from ldp_runtime.service.state import Service

if TYPE_CHECKING:
    from ldp_runtime.service.settings import Settings

_BACKLOG = 128


class ServeError(LDPError):
    """The service cannot be started as asked."""


def listen(host: str, port: int) -> socket.socket:
    """Opens a socket that listens.

    Args:
        host: A name or an address.
        port: A port; 0 picks a free one.

    Raises:
        ServeError: The host is unknown, or the port is taken or forbidden.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error


def serve(service: Service, sock: socket.socket, *, log_requests: bool) -> int | None:
    """Serves until a signal; then waits for the running work.

    Args:
        service: The service.
        sock: A listening socket; it is closed at the end.
        log_requests: Print a line per request.

    Returns:
        The signal, or None if there was none.
    """
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=log_requests,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=max(1, int(settings.idle_seconds)),
        timeout_graceful_shutdown=max(1, int(settings.grace)),
    )
    if log_requests:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    server = _Server(config, service)
    server.run(sockets=[sock])
    if not service.queue.join(0 if server.force_exit else server.stop_by - time.monotonic()):
        # A thread inside a native library would crash while the interpreter unloads it.
        print("ldp: warning: stopped while a pair was being restored", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130 if server.signal == signal.SIGINT else 0)
    return server.signal


class _Server(uvicorn.Server):
    """Refuses uploads from the signal on; the caller chooses the exit code."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.signal: int | None = None
        self.stop_by = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = sig
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_by = time.monotonic() + self._service.settings.grace
        self._service.queue.close()
        await super().shutdown(sockets)


def _protocol(settings: Settings) -> type[H11Protocol]:
    return type("PatientProtocol", (_TimedProtocol,), {"settings": settings})


class _TimedProtocol(H11Protocol):
    """A connection that ends when its client sends no head of a request, or reads nothing of an answer, for too long.

    uvicorn limits neither. The body of a request is timed where it is read, in ``uploads``.
    """

    settings: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.settings.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(self.settings.idle_seconds, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if getattr(self.cycle, "response_complete", True):  # None before the first request
            self.transport.abort()
