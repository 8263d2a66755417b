"""``ldp serve`` under load on loopback: sustained, overload, slow clients, half-open connections, malformed forms.

The service runs in a process of its own, with its usual limits except for a shorter queue; the clients are threads of
this one, on the same CPU. Its memory and open files are read after each part.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.serving import Serving, serving
from benchmarks.harness.tables import load_text, markdown_table, mebibytes, significant

EXAMPLES = """\
examples:
  python -m benchmarks service
  python -m benchmarks service --seconds 60 --concurrency 1 2 4 8 --shape 560x840
  python -m benchmarks service --bundle my-bundle --mutations 2000

Writes service.json and service.md into the output folder.
"""

QUEUE = 4
"""Pairs that may wait: few, so that overload comes soon."""

OVERLOAD = 16
"""Concurrent clients of the overload."""

CONNECTIONS = 40
"""Connections of slow and half-open clients."""

_BOUNDARY = "ldp-bench-boundary"
_TIMEOUT = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--bundle", default="ldp-nano", metavar="NAME|DIR", help="default: %(default)s")
    parser.add_argument("--backend", default="auto", help="a backend (default: %(default)s)")
    options.add_shape(parser, (256, 384))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="sustained loads")
    parser.add_argument("--mutations", type=int, default=500, help="malformed forms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: %(default)s)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Loads the service, prints the tables and writes the results."""
    from benchmarks.harness.bundles import open_bundle

    bundle = open_bundle(arguments.bundle, None)
    head, body = make_request(*sample_files(arguments.shape))
    data: dict[str, Any] = {"shape": list(arguments.shape), "seconds": arguments.seconds, "queue": QUEUE}
    parts: dict[str, Any] = {}
    command = ("--bundle", bundle.path, "--backend", arguments.backend, "--queue", QUEUE)
    with watch_load() as average, serving(*command) as service:
        data["backend"] = service.printed[1].removeprefix("backend  ")
        load(service, head, body, clients=1, seconds=2.0)  # the first requests grow pools
        memory = [{"after": "start", **footprint(service)}]

        def part(name: str, measure: Callable[[], Any]) -> None:
            print(f"{name} ...", flush=True)
            parts[name] = measure()
            memory.append({"after": name, **footprint(service)})

        for clients in arguments.concurrency:
            part(f"sustained, {clients} at a time", partial(load, service, head, body, clients, arguments.seconds))
        part("overload", lambda: load(service, head, body, OVERLOAD, arguments.seconds))
        part("slow heads", lambda: hold(service, head, body, sent=head[:60], drip=b"X-A: b\r\n"))
        part("slow bodies", lambda: hold(service, head, body, sent=head + body[:2000], drip=b"a"))
        part("half-open", lambda: hold(service, head, body, sent=b"", drip=b""))
        part("malformed", lambda: malformed(service, body, arguments.mutations, arguments.seed))
        part("after all, 1 at a time", lambda: load(service, head, body, 1, arguments.seconds))
        code, errors = service.stop()
    data |= {"parts": parts, "memory": memory, "exit_code": code, "stderr_lines": len(errors.splitlines())}
    report = Report.new("service", {**data, "load_average": average}, bundle)
    publish(report, to_markdown(report), arguments.output, "service")


def sample_files(shape: tuple[int, int]) -> tuple[bytes, bytes]:
    """Both views of the sample, repeated or cut to a shape, as PNG."""
    from benchmarks.harness.sample import sample_pair
    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import encode_photo

    left, right = (encode_photo("view.png", Photo(view)) for view in sample_pair(shape))
    return left, right


def make_request(left: bytes, right: bytes) -> tuple[bytes, bytes]:
    """Head and body of a request that restores a pair."""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in (("left", left), ("right", right))
    ]
    body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    head = (
        "POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def exchange(service: Serving, head: bytes, body: bytes) -> int:
    """Sends one request on a new connection and reads the whole answer; its status, 0 if the connection ended."""
    try:
        with socket.create_connection(service.address, timeout=_TIMEOUT) as connection:
            connection.sendall(head + body)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            return answer.status
    except (OSError, http.client.HTTPException):
        return 0


def load(service: Serving, head: bytes, body: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that each send one request after the other.

    Returns:
        Answers by status, restored pairs per second, and the latency of restored and of refused pairs in seconds.
    """
    times: dict[int, list[float]] = collections.defaultdict(list)
    lock = threading.Lock()
    begin = time.perf_counter()

    def client() -> None:
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            status = exchange(service, head, body)
            with lock:
                times[status].append(time.perf_counter() - start)
            if status == 429:
                time.sleep(0.05)  # far less than Retry-After asks for

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    return {
        "clients": clients,
        "statuses": {str(status): len(values) for status, values in sorted(times.items())},
        "restored_a_second": len(times[200]) / spent,
        "restored": quantiles(times[200]),
        "refused": quantiles(times[429]),
    }


def hold(service: Serving, head: bytes, body: bytes, *, sent: bytes, drip: bytes) -> dict[str, Any]:
    """Connections that send a little and then nearly nothing, while another client restores a pair.

    Args:
        service: The service.
        head: Head of a valid request.
        body: Its body.
        sent: Bytes that each connection sends at once.
        drip: Bytes that it sends every second afterwards; empty for none.

    Returns:
        Status and seconds of the valid request meanwhile, the number of connections that the service ended by status,
        and the seconds after which the last one ended.
    """
    connections = [socket.create_connection(service.address, timeout=_TIMEOUT) for _ in range(CONNECTIONS)]
    begin = time.perf_counter()
    statuses: collections.Counter[str] = collections.Counter()
    last = 0.0
    try:
        for connection in connections:
            connection.sendall(sent)
            connection.setblocking(False)
        start = time.perf_counter()
        status = exchange(service, head, body)
        good = {"status": status, "seconds": time.perf_counter() - start}
        left = set(connections)
        while left and time.perf_counter() - begin < _TIMEOUT:
            for connection in list(left):
                ended = _ended(connection, drip)
                if ended is not None:
                    statuses[ended] += 1
                    left.remove(connection)
                    last = time.perf_counter() - begin
            time.sleep(1.0)
        return {
            "connections": CONNECTIONS,
            "good": good,
            "ended": dict(statuses),
            "left": len(left),
            "last_seconds": last,
        }
    finally:
        for connection in connections:
            connection.close()


def _ended(connection: socket.socket, drip: bytes) -> str | None:
    """The status of the answer, "closed" if there was none, or None while the connection is open."""
    try:
        answer = connection.recv(65536)
        return answer[9:12].decode() if answer else "closed"
    except BlockingIOError:
        pass
    except OSError:
        return "closed"
    with contextlib.suppress(OSError):
        connection.send(drip) if drip else None
    return None


def malformed(service: Serving, body: bytes, count: int, seed: int) -> dict[str, Any]:
    """Sends mutations of a valid form; the answers by status."""
    small = body if len(body) < 4096 else body[:1500] + body[-1500:]  # a damaged picture within a valid form
    statuses: collections.Counter[str] = collections.Counter()
    for mutated in mutations(small, count, random.Random(seed)):
        head = (
            "POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: {len(mutated)}\r\n\r\n"
        )
        statuses[str(exchange(service, head.encode(), mutated))] += 1
    if wrong := {status for status in statuses if status.startswith("5") or status == "0"}:
        raise BenchmarkError(f"expected answers of 4xx to malformed forms, got {', '.join(sorted(wrong))}; fix them")
    return {"forms": count, "statuses": dict(sorted(statuses.items()))}


def mutations(body: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """Forms with bytes changed, cut, repeated and exchanged, and with damaged boundaries and headers."""
    tokens = [
        b"\r\n",
        b"--",
        _BOUNDARY.encode(),
        b"Content-Disposition",
        b'name="left"',
        b"\x00",
        b'"',
        b";",
        b"=",
        b":",
    ]
    for _ in range(count):
        data = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data)) if data else 0
            kind = rng.randrange(5)
            if kind == 0 and data:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at:]
            elif kind == 2:
                del data[at : at + rng.randint(1, 64)]
            elif kind == 3:
                data[at:at] = rng.choice(tokens) * rng.randint(1, 50)
            else:
                data = data.replace(rng.choice(tokens), rng.choice(tokens), rng.randint(1, 3))
        yield bytes(data)


def footprint(service: Serving) -> dict[str, int | None]:
    """Resident bytes and open files of the service's process; None where the system does not say."""
    process = Path("/proc") / str(service.process.pid)
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
        resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
        return {"resident": resident, "files": len(list((process / "fd").iterdir()))}
    except (OSError, StopIteration):
        return {"resident": None, "files": None}


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile and maximum; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        "max": ordered[-1],
    }


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title.

    Args:
        report: Of kind "service".
    """
    data = report.data
    parts = data["parts"]
    height, width = data["shape"]
    loads = [(name, part) for name, part in parts.items() if "restored_a_second" in part]
    slow = [(name, part) for name, part in parts.items() if "connections" in part]
    rows = [
        [
            name,
            part["clients"],
            significant(part["restored_a_second"]),
            *(significant((part["restored"] or {}).get(key)) for key in ("median", "p95", "max")),
            part["statuses"].get("429", 0),
            significant((part["refused"] or {}).get("p95")),
            sum(n for status, n in part["statuses"].items() if status not in ("200", "429")),
        ]
        for name, part in loads
    ]
    header = ["load", "clients", "pairs/s", "median s", "p95 s", "max s", "429", "429 p95 s", "other"]
    texts = [
        "# ldp serve under load",
        f"Pairs of {width} x {height} px in, images out, on loopback; one worker, a queue of {data['queue']}, "
        f"{data['seconds']:g} s per load; clients on the same CPU. {data['backend']}.",
        markdown_table(header, rows),
        "Clients that hold a connection, and a valid request meanwhile:",
        markdown_table(
            ["clients", "connections", "ended by the service", "left", "last after s", "valid request", "its s"],
            [
                [
                    name,
                    part["connections"],
                    ", ".join(f"{n} {kind}" for kind, n in part["ended"].items()),
                    part["left"],
                    significant(part["last_seconds"]),
                    part["good"]["status"],
                    significant(part["good"]["seconds"]),
                ]
                for name, part in slow
            ],
        ),
        f"{parts['malformed']['forms']} malformed forms were answered with "
        + ", ".join(f"{status} ({n})" for status, n in parts["malformed"]["statuses"].items())
        + ".",
        markdown_table(
            ["after", "resident MiB", "open files"],
            [[each["after"], mebibytes(each["resident"]), each["files"]] for each in data["memory"]],
        ),
    ]
    average = load_text(data["load_average"])
    texts.append(f"Exit code {data['exit_code']} after SIGTERM. Load average before and after: {average}.")
    return "\n\n".join(texts) + "\n"
