"""Tests of ``tensorrt_builder`` that need no TensorRT."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from ldp_export.bundling.tensorrt_builder import _interruptible


@pytest.mark.usefixtures("heeds_sigint")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread need POSIX")
def test_ctrl_c_cancels_a_build_and_waits_for_its_end() -> None:
    """The process must not end under TensorRT's threads: that is an abort, or a crash, in place of exit code 130."""
    cancelled, ended = threading.Event(), threading.Event()
    main = threading.get_ident()

    def build() -> None:
        time.sleep(0.3)  # the other thread waits by now
        signal.pthread_kill(main, signal.SIGINT)
        if cancelled.wait(60):
            time.sleep(0.3)  # its step under way
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        _interruptible(build, cancelled.set)
    assert ended.is_set()
