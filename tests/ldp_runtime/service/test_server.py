"""``ldp serve`` as a process: its options, its connections, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from benchmarks.harness.serving import serving
from ldp_runtime.cli import main
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo, write_photo
from ldp_runtime.service import server as server_module
from ldp_runtime.service.server import ServeError, listen
from ldp_runtime.service.settings import Settings
from ldp_runtime.service.state import Service
from tests.ldp_runtime.service.fakes import FakeDeblurrer, encoded, until, view
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


def form(left: bytes, right: bytes) -> tuple[bytes, bytes]:
    """The head and body of a request to ``/v1/deblur``."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n' % (name, name, data)
        for name, data in ((b"left", left), (b"right", right))
    ]
    body = b"".join(parts) + b"--x--\r\n"
    head = (
        b"POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    return head, body


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    connection.settimeout(60)
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


# --- the process --------------------------------------------------------------------------------------------


def test_serve_restores_as_deblur_does_and_ends_with_0(bundle: Path, tmp_path: Path) -> None:
    for name, shift in (("left", 1), ("right", -1)):
        write_photo(tmp_path / f"{name}.png", Photo(view(shift)))
    options = ["--bundle", str(bundle), "--backend", "onnxruntime", "--precision", "fp32", "--threads", "1"]
    pair = [str(tmp_path / f"{name}.png") for name in ("left", "right")]
    assert main(["deblur", *pair, "-o", str(tmp_path / "out.png"), "--quiet", *options]) == 0
    with serving(*options) as service:
        assert service.printed[0] == f"bundle   tiny ({bundle})"
        assert service.printed[-1] == f"serving  {service.url}/"
        assert service.address[0] == "127.0.0.1"
        with socket.create_connection(service.address, timeout=60) as connection:
            head, body = form(encoded(shift=1), encoded(shift=-1))
            connection.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.partition(b"\r\n\r\n")[2] == (tmp_path / "out.png").read_bytes()
        assert service.stop(signal.SIGTERM) == (0, "")


@pytest.mark.usefixtures("heeds_sigint")
def test_ctrl_c_ends_with_130_and_beyond_loopback_a_token_is_made(bundle: Path) -> None:
    with serving("--host", "0.0.0.0", "--bundle", bundle, "--backend", "onnxruntime") as service:
        token = next(line.split()[1] for line in service.printed if line.startswith("token"))
        assert service.printed[-1] == f"serving  {service.url}/#token={token}"
        url = f"http://127.0.0.1:{service.address[1]}/v1/limits"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=60)
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["max_pixels"] == 100_000_000
        assert service.stop(signal.SIGINT) == (130, "ldp: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token-file", "missing"], ["missing", "token"]),
        (["--host", "host.invalid"], ["host.invalid", "--host"]),
        (["--bundle", "nothing-of-that-name"], ["nothing-of-that-name"]),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ldp: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "tab\tin the middle of it", ""])
def test_a_bad_token_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LDP_TOKEN", token)
    assert main(["serve", "--port", "0"]) == 2
    assert "LDP_TOKEN: expected a token of at least 16" in capsys.readouterr().err
    (tmp_path / "token").write_text(token)
    assert main(["serve", "--port", "0", "--token-file", str(tmp_path / "token")]) == 2


@pytest.mark.parametrize(
    "option", ["--workers", "--queue", "--max-upload", "--max-megapixels", "--time-limit", "--grace"]
)
@pytest.mark.parametrize("value", ["0", "-1", "many", "nan"])
def test_limits_are_positive(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", option, value]) == 2
    assert f"got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "70000", "-1", "http"])
def test_a_port_is_one(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", port]) == 2
    assert f"expected a port from 0 to 65535, got '{port}'" in capsys.readouterr().err


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ServeError, match="choose another --host or --port"):
        listen("127.0.0.1", sock.getsockname()[1])


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("app", "server"):  # imported again, which fails at fastapi
        monkeypatch.delitem(sys.modules, f"ldp_runtime.service.{module}")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    assert "needs the package fastapi, which is not installed; run pip install 'ldp[serve]'" in capsys.readouterr().err


# --- connections --------------------------------------------------------------------------------------------


class InThread:
    """A service in a thread of this process, with limits of tenths of a second."""

    def __init__(self, **settings: Any) -> None:
        self.deblurrer = FakeDeblurrer()
        deblurrers: Any = self.deblurrer
        values = {"idle_seconds": 0.4, "stalled_seconds": 0.4, "upload_grace": 0.4, "upload_rate": 10**6, **settings}
        self.service = Service(Settings(**values), lambda: deblurrers)
        self._sock = listen("127.0.0.1", 0)
        self.address = self._sock.getsockname()
        self._thread = threading.Thread(target=server_module.serve, args=(self.service, self._sock))
        self._servers: list[uvicorn.Server] = []

    def __enter__(self) -> InThread:
        servers, original = self._servers, server_module._Server

        class Kept(original):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                servers.append(self)

        server_module._Server = Kept
        self._thread._kwargs = {"log_requests": False}
        self._thread.start()
        until(lambda: servers and servers[0].started)
        server_module._Server = original
        return self

    def stop(self) -> None:
        self._servers[0].should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.deblurrer.go.set()
        if self._thread.is_alive():
            self.stop()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)


@pytest.fixture
def quick() -> Iterator[InThread]:
    with InThread() as service:
        yield service


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_connection_without_a_whole_head_is_closed(quick: InThread, sent: bytes) -> None:
    with quick.connect() as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_a_head_that_drips_is_closed(quick: InThread) -> None:
    with quick.connect() as connection:
        connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        closed = threading.Event()
        reader = threading.Thread(target=lambda: (read_all(connection), closed.set()))
        reader.start()
        connection.sendall(b"GET / HTTP/1.1\r\n")
        try:
            while not closed.wait(0.05):
                connection.sendall(b"A: b\r\n")  # each in time, the head never
        except OSError:
            pass
        reader.join(60)
        assert closed.is_set()


def test_an_upload_that_drips_is_refused(quick: InThread) -> None:
    head, body = form(encoded(), encoded())
    with quick.connect() as connection:
        connection.sendall(head + body[:200])
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer and b"bytes a second" in answer
    assert quick.service.uploads.reading == 0


def test_uploads_have_a_limit_of_their_own() -> None:
    head, body = form(encoded(), encoded())
    with InThread(uploads=1, upload_grace=60) as quick, quick.connect() as slow, quick.connect() as other:
        slow.sendall(head + body[:200])
        until(lambda: quick.service.uploads.reading == 1)
        other.sendall(head + body)
        assert b"1 uploads are being read" in read_all(other)
        slow.sendall(body[200:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_client_that_takes_no_answer_is_cut_off(quick: InThread) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    data = encode_photo("noise.png", Photo(noise))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(quick.address)
        head, body = form(data, data)
        connection.sendall(head + body)
        until(lambda: not quick._servers[0].server_state.connections)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer) < len(data)


def test_a_client_that_leaves_is_dropped_from_the_queue(quick: InThread) -> None:
    quick.deblurrer.go.clear()
    head, body = form(encoded(), encoded())
    with quick.connect() as first:
        first.sendall(head + body)
        assert quick.deblurrer.begun.wait(60)
        second = quick.connect()
        second.sendall(head + body)
        until(lambda: quick.service.queue.waiting == 1)
        second.close()
        until(lambda: quick.service.queue.waiting == 0)
        quick.deblurrer.go.set()
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
    assert len(quick.deblurrer.axes) == 1


def test_what_runs_is_finished_when_the_service_stops(quick: InThread) -> None:
    quick.deblurrer.go.clear()
    head, body = form(encoded(shift=1), encoded(shift=-1))
    with quick.connect() as first, quick.connect() as second:
        first.sendall(head + body)
        assert quick.deblurrer.begun.wait(60)
        second.sendall(head + body)
        until(lambda: quick.service.queue.waiting == 1)
        stopping = threading.Thread(target=quick.stop)
        stopping.start()
        assert read_all(second).startswith(b"HTTP/1.1 503 ")
        with pytest.raises(OSError):
            quick.connect().close()
        quick.deblurrer.go.set()
        answer = read_all(first)
        stopping.join(60)
    assert answer.startswith(b"HTTP/1.1 200")
    restored = decode_photo("answer", answer.partition(b"\r\n\r\n")[2]).pixels
    np.testing.assert_array_equal(restored, 255 - view(1))


STUCK = """
from tests.ldp_runtime.service.fakes import FakeDeblurrer
from ldp_runtime.service.state import Service
from ldp_runtime.service.server import listen, serve
from ldp_runtime.service.settings import Settings
deblurrer = FakeDeblurrer()
deblurrer.go.clear()
service = Service(Settings(grace=1), lambda: deblurrer)
sock = listen("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
serve(service, sock, log_requests=False)
"""


def test_what_does_not_end_within_the_grace_is_left() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STUCK], text=True, env=environment, **pipes) as process:
        try:
            port = int(process.stdout.readline())
            head, body = form(encoded(), encoded())
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(head + body)
                running = 0
                while running == 0:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/health", timeout=60) as answer:
                        running = json.load(answer)["running"]
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "ldp: warning: stopped while a pair was being restored" in err
