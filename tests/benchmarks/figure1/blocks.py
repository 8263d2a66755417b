"""Blocks in the place of measured ones."""

from benchmarks.figure1.store import Record
from benchmarks.latency.worker import Block


def block(seconds: float, host_bytes: int = 10**8) -> Block:
    """A block of three runs, each a half quicker in processor time."""
    return Block(
        *([seconds] * 3, {}, {}, {"process": 1.0, "load": 1.0, "first": 1.0}, host_bytes, None, "a device"),
        gpu=False,
        events=False,
        cpu_seconds=[seconds / 2] * 3,
    )


def record(seconds: float, host_bytes: int = 10**8) -> Record:
    """A record with such a block."""
    return Record(block(seconds, host_bytes), None, [0.5, 1.5])
