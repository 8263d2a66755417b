"""``ldp serve``: a local HTTP service with a page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ldp_runtime.commands.options import (
    add_backend_arguments,
    add_bundle_argument,
    add_check_arguments,
    add_tile_argument,
    load,
    parse_size,
    positive_int,
    positive_number,
)
from ldp_runtime.errors import LDPError

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer

HELP = "Serves a web page and an HTTP API that restore pairs."
EXAMPLES = """\
examples:
  ldp serve
  ldp serve --port 9000 --workers 2 --max-megapixels 50
  ldp serve --backend cuda --warm-up 1120x1680
  curl -F left=@left.png -F right=@right.png http://127.0.0.1:8000/v1/deblur -o sharp.png
  curl -F left=@PHOTO.CR3 http://127.0.0.1:8000/v1/deblur -o sharp.png
  LDP_TOKEN=$(cat token) ldp serve --host 0.0.0.0

It listens on 127.0.0.1 alone unless --host names another address. Then clients
have to send a token (Authorization: Bearer TOKEN): that of --token-file or of
LDP_TOKEN, or one that is generated and printed. There is no TLS: put a proxy in
front for that. Routes: / (the page), /v1/deblur, /v1/restorations, /v1/health,
/v1/limits, /metrics, /openapi.json.

Ctrl-C or SIGTERM stops it: no connection is accepted from then on, pairs that
wait are answered with 503, and those that are being restored get --grace
seconds. It ends with 130 after Ctrl-C and with 0 after SIGTERM.

"""

_TOKEN_VARIABLE = "LDP_TOKEN"
_LEAST_TOKEN = 16
_LIMITS: tuple[tuple[str, Callable[[str], float], int, str, str], ...] = (
    ("--workers", positive_int, 1, "N", "pairs restored at a time, each with graphs of its own in memory"),
    ("--queue", positive_int, 8, "N", "pairs that may wait; more are answered with 429"),
    ("--max-upload", positive_number, 256, "MIB", "largest upload, in MiB"),
    ("--max-megapixels", positive_number, 100, "N", "largest view, in megapixels"),
    ("--time-limit", positive_number, 300, "S", "seconds from the upload to the result"),
    ("--grace", positive_number, 30, "S", "seconds to finish in when stopped"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("--host", default="127.0.0.1", help="name or address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="0 picks a free one (default: 8000)")
    parser.add_argument(
        "--token-file", metavar="PATH", help=f"file with the token that clients send (default: ${_TOKEN_VARIABLE})"
    )
    for name, kind, default, unit, text in _LIMITS:
        parser.add_argument(name, type=kind, default=default, metavar=unit, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--warm-up",
        nargs="+",
        type=parse_size,
        default=[(64, 64)],
        metavar="HxW",
        help="sizes that pairs will have: on a GPU what is made once a size is made before the first comes "
        "(default: 64x64)",
    )
    add_bundle_argument(parser)
    add_backend_arguments(parser)
    add_tile_argument(parser)
    add_check_arguments(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no line per request")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    import signal

    try:
        from ldp_runtime.service.gate import is_loopback
        from ldp_runtime.service.server import listen, serve
        from ldp_runtime.service.settings import MIB, Settings
        from ldp_runtime.service.state import Service
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ldp_runtime":
            raise
        raise LDPError(
            f"ldp serve needs the package {error.name}, which is not installed; run pip install 'ldp[serve]'"
        ) from error
    import secrets

    token, generated = _read_token(arguments.token_file), False
    sock = listen(arguments.host, arguments.port)
    with sock:
        address, port = sock.getsockname()[:2]
        if token is None and not is_loopback(address):
            token, generated = secrets.token_urlsafe(24), True
        settings = Settings(
            token=token,
            workers=arguments.workers,
            queue=arguments.queue,
            max_upload=int(arguments.max_upload * MIB),
            max_pixels=int(arguments.max_megapixels * 1e6),
            time_limit=arguments.time_limit,
            grace=arguments.grace,
        )
        first: list[Deblurrer] = []

        def open_deblurrer() -> Deblurrer:
            deblurrer = load(arguments)
            deblurrer.warm_up(arguments.warm_up)
            first.append(deblurrer)
            return deblurrer

        service = Service(settings, open_deblurrer)
        host = f"[{address}]" if ":" in address else address
        print(f"bundle   {first[0].bundle.manifest.name} ({first[0].bundle.path})")
        print(f"backend  {first[0].reason}")
        if generated:
            print(f"token    {token}")
        print(f"serving  http://{host}:{port}/" + (f"#token={token}" if generated else ""), flush=True)
        stopped_by = serve(service, sock, log_requests=not arguments.quiet)
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt


def _read_token(path: str | None) -> str | None:
    if path is not None:
        where = path
        try:
            token = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LDPError(f"{path}: expected a file with a token in ASCII, got {error}; choose another") from error
    elif _TOKEN_VARIABLE in os.environ:
        where, token = _TOKEN_VARIABLE, os.environ[_TOKEN_VARIABLE].strip()
    else:
        return None
    if len(token) < _LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise LDPError(
            f"{where}: expected a token of at least {_LEAST_TOKEN} printable characters without spaces, got "
            f"{len(token)} characters; make one with: openssl rand -hex 16"
        )
    return token


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)
