"""Middleware before every route: who may ask, and the headers of every answer."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldp_runtime.service.metrics import Metrics
from ldp_runtime.service.problems import ProblemError, respond

CHUNK = 256 * 1024
"""Bytes of an answer that are sent at a time, so that a client that reads none of them is noticed."""

_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Gate:
    """Middleware: checks host, origin and token; adds headers; counts the answers.

    Without a token only requests to a loopback name are answered: a page on the internet can let its own name resolve
    to 127.0.0.1, and could then read every answer. With or without one, no other site's page may send anything.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, public: Collection[str], metrics: Metrics) -> None:
        """Wraps ``app``.

        Args:
            app: The application.
            token: As in ``Settings``.
            public: Paths that need no token.
            metrics: Counts the answers.
        """
        self._app = app
        self._token = None if token is None else f"Bearer {token}".encode()
        self._public = frozenset(public)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.count_answer(method, getattr(scope.get("route"), "path", "other"), message["status"])
                await send(message)
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            for start in range(0, len(body), CHUNK):
                last = start + CHUNK >= len(body)
                await send({**message, "body": body[start : start + CHUNK], "more_body": more or not last})
            if not body:
                await send(message)

        try:
            self._check(scope["path"], scope["method"], Headers(scope=scope))
        except ProblemError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else None
            await respond(error.status_code, str(error.detail), headers)(scope, receive, send_on)
            return
        await self._app(scope, receive, send_on)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_hostname(f"//{host}")):
            raise ProblemError(
                421, "expected a request to localhost, as the service has no token; start it with a token"
            )
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            raise ProblemError(
                403, "expected a request of the service's own page, got another site's; open the own page"
            )
        if self._token is not None and path not in self._public:
            given = headers.get("authorization", "").encode("utf-8")
            if not hmac.compare_digest(given, self._token):
                raise ProblemError(
                    401, "expected the header 'Authorization: Bearer TOKEN' with the service's token; send it"
                )


def is_loopback(host: str | None) -> bool:
    """Whether a name or address always means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
