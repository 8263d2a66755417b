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
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
import pytest

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo
from ldp_runtime.service.server import ServeError, listen
from tests.ldp_runtime.service.fakes import InThread, encoded, until, view


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
    """Everything until the other side closes."""
    connection.settimeout(60)
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of an answer, after which the connection may stay open."""
    answer = HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ServeError, match="choose another --host or --port"):
        listen("127.0.0.1", sock.getsockname()[1])


@pytest.fixture
def running() -> Iterator[InThread]:
    with InThread() as service:
        yield service


@pytest.fixture
def quick() -> Iterator[InThread]:
    """A service whose clients have little time to send."""
    with InThread(idle_seconds=0.2, upload_grace=0.2, upload_rate=10**6) as service:
        yield service


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_connection_without_a_whole_head_is_closed(quick: InThread, sent: bytes) -> None:
    with quick.send(sent) as connection:
        assert read_all(connection) == b""


def test_a_head_that_drips_is_closed(quick: InThread) -> None:
    with quick.send(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as connection:
        assert read_answer(connection)[0] == 200
        closed = threading.Event()
        reader = threading.Thread(target=lambda: (read_all(connection), closed.set()))
        reader.start()
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            while not closed.wait(0.05):
                connection.sendall(b"A: b\r\n")  # each in time, the head never
        except OSError:
            pass
        reader.join(60)
        assert closed.is_set()


def test_an_upload_that_drips_is_refused(quick: InThread) -> None:
    head, body = form(encoded(), encoded())
    with quick.send(head + body[:200]) as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer and b"bytes per second" in answer
    assert quick.service.uploads.reading == 0


def test_uploads_have_a_limit_of_their_own() -> None:
    head, body = form(encoded(), encoded())
    with InThread(uploads=1, upload_grace=60) as running, running.send(head + body[:200]) as slow:
        until(lambda: running.service.uploads.reading == 1)
        with running.send(head + body) as other:
            status, problem = read_answer(other)
            assert status == 429 and b"1 uploads are being read" in problem
        slow.sendall(body[200:])
        assert read_answer(slow)[0] == 200


def test_a_client_that_takes_no_answer_is_cut_off() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    data = encode_photo("noise.png", Photo(noise))
    with InThread(stalled_seconds=0.2) as running, socket.socket() as connection:
        running.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(running.address)
        head, body = form(data, data)
        connection.sendall(head + body)
        assert running.deblurrer.begun.wait(60)
        until(lambda: not running.server.server_state.connections)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer) < len(data)


def test_a_client_that_leaves_is_dropped_from_the_queue(running: InThread) -> None:
    running.deblurrer.go.clear()
    head, body = form(encoded(), encoded())
    with running.send(head + body) as first:
        assert running.deblurrer.begun.wait(60)
        second = running.send(head + body)
        until(lambda: running.service.queue.waiting == 1)
        second.close()
        until(lambda: running.service.queue.waiting == 0)
        running.deblurrer.go.set()
        assert read_answer(first)[0] == 200
    assert len(running.deblurrer.axes) == 1


def test_what_runs_is_finished_when_the_service_stops(running: InThread) -> None:
    running.deblurrer.go.clear()
    head, body = form(encoded(shift=1), encoded(shift=-1))
    with running.send(head + body) as first:
        assert running.deblurrer.begun.wait(60)
        with running.send(head + body) as second:
            until(lambda: running.service.queue.waiting == 1)
            stopping = threading.Thread(target=running.stop)
            stopping.start()
            assert read_answer(second)[0] == 503
        with pytest.raises(OSError):
            running.send(b"").close()
        running.deblurrer.go.set()
        status, image = read_answer(first)
        stopping.join(60)
    assert status == 200
    np.testing.assert_array_equal(decode_photo("answer", image).pixels, 255 - view(1))


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
