"""Times in which Python's garbage collector has to stay away."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_enabled = False


@contextlib.contextmanager
def collecting_nothing() -> Iterator[None]:
    """Keeps Python's garbage collector away, in all threads, until the last of those that ask for it is done.

    Two things need it. While TensorRT makes a builder or a runtime it calls the logger under a lock that dropping a
    builder or a runtime takes too: an older one that is collected within the logger would deadlock. And while work is
    captured for a CUDA graph, memory that is collected, ours or another library's, is given back by calls that spoil
    the capture.
    """
    global _inside, _enabled
    with _lock:
        _inside += 1
        if _inside == 1:
            _enabled = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _enabled:
                gc.enable()
