"""Errors as RFC 9457 problems: a JSON object with a status and the message that the command line would print."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

from ldp_runtime.errors import ImageError, LDPError
from ldp_runtime.service.models import Problem

MEDIA_TYPE = "application/problem+json"


class ProblemError(HTTPException):
    """An error that is answered with a problem."""

    def __init__(self, status: int, detail: str, *, retry_after: float | None = None, close: bool = False) -> None:
        """Makes the error.

        Args:
            status: HTTP status.
            detail: What was expected, what was given, and the fix.
            retry_after: Seconds after which the client may try again.
            close: Close the connection after the answer.
        """
        headers = {}
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if close:
            headers["Connection"] = "close"
        super().__init__(status, detail, headers or None)


def describe(status: int, detail: str) -> Problem:
    """The problem of a status."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


def respond(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response with a problem."""
    return JSONResponse(describe(status, detail).model_dump(), status, headers, MEDIA_TYPE)


def problem_of(error: BaseException) -> ProblemError:
    """The problem to answer with when a restoration raised ``error``."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, ImageError):
        return ProblemError(422, str(error))
    if isinstance(error, MemoryError):
        return ProblemError(503, "out of memory; send smaller images, or try again later", retry_after=10)
    if isinstance(error, LDPError):
        return ProblemError(500, str(error))
    return ProblemError(500, "a bug in ldp; its log has the traceback, please report it")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
