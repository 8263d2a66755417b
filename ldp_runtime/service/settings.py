"""The settings of a service."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Limits and rules of a service, fixed when it starts.

    Attributes:
        token: What a client has to send as ``Authorization: Bearer TOKEN``; with None only requests to a loopback
            name are answered.
        workers: Threads that restore, each with graphs of its own.
        queue: Pairs that may wait for a worker.
        uploads: Uploads that may be read at a time.
        max_upload: Largest request body, in bytes: both views and the rest of the form.
        max_pixels: Largest view, in pixels; checked before it is decoded.
        time_limit: Seconds from the end of the upload to the result.
        grace: Seconds that running work may take after a signal to stop.
        keep_seconds: How long a result is kept.
        keep_bytes: Most bytes of results that are kept; the oldest go first.
        keep_count: Most results that are kept.
        upload_grace: Seconds in which an upload may be of any rate.
        upload_rate: Least bytes per second of an upload on average after that.
        idle_seconds: How long a connection may take to send the head of a request.
        stalled_seconds: How long a client may read nothing of its answer.
        max_connections: Connections that may be open at a time.
    """

    token: str | None = None
    workers: int = 1
    queue: int = 8
    uploads: int = 8
    max_upload: int = 256 * MIB
    max_pixels: int = 100_000_000
    time_limit: float = 300.0
    grace: float = 30.0
    keep_seconds: float = 600.0
    keep_bytes: int = 1024 * MIB
    keep_count: int = 32
    upload_grace: float = 10.0
    upload_rate: int = 65536
    idle_seconds: float = 10.0
    stalled_seconds: float = 30.0
    max_connections: int = 256
