"""Reading an upload within its limits: how many at a time, how large, how slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from ldp_runtime.service.problems import ProblemError

if TYPE_CHECKING:
    from ldp_runtime.service.settings import Settings
    from ldp_runtime.service.state import Service


class UploadRoute(APIRoute):
    """A route whose body is an upload: refused before it is read, or while it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See ``APIRoute``: FastAPI reads the form in the handler, from the request that it gets here."""
        handle = super().get_route_handler()

        async def handle_within_limits(request: Request) -> Response:
            service: Service = request.app.state.service
            service.queue.check_room()
            _check_length(request, service.settings.max_upload)
            with ExitStack() as slot:
                slot.enter_context(service.uploads.slot())
                receive = _limited(request.receive, service.settings, slot.close)
                return await handle(Request(request.scope, receive))

        return handle_within_limits


def _check_length(request: Request, limit: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        413,
        f"expected an upload of at most {limit} bytes, got more; send a smaller pair, or start the service with a "
        "larger --max-upload",
    )


def _limited(receive: Receive, settings: Settings, end: Callable[[], None]) -> Receive:
    """A ``receive`` that refuses a body that is too large or too slow.

    Args:
        receive: The source of the body.
        settings: The limits.
        end: Called when the body is complete.
    """
    start = time.monotonic()
    received = 0
    complete = False

    async def receive_within_limits() -> Message:
        nonlocal received, complete
        if complete:  # the next message is that the client left
            return await receive()
        left = start + settings.upload_grace + received / settings.upload_rate - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await receive()
        except TimeoutError:
            raise ProblemError(
                408,
                f"expected at least {settings.upload_rate} bytes per second, got fewer; use a faster connection",
                close=True,
            ) from None
        received += len(message.get("body", b""))
        if received > settings.max_upload:
            raise _too_large(settings.max_upload)
        if not message.get("more_body", False):
            complete = True
            end()
        return message

    return receive_within_limits
