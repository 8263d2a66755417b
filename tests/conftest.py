from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """SIGINT interrupts this process and those that it starts, even where the suite runs in the background.

    A shell starts background jobs with SIGINT ignored; children inherit that, and Python then installs no handler.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
