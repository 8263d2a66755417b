import threading

import pytest

from ldp_runtime.threads import each, usable_cores


def test_results_come_in_the_order_of_the_items() -> None:
    barrier = threading.Barrier(3, timeout=60)

    def work(item: int) -> int:
        if item < 3:  # passes only if three calls run at a time
            barrier.wait()
        return item * item

    assert each(work, range(7), threads=3) == [n * n for n in range(7)]


@pytest.mark.parametrize(("items", "threads"), [([1, 2, 3], 1), ([5], None), ([], None)])
def test_one_thread_is_the_caller_s_own(items: list[int], threads: int | None) -> None:
    assert each(lambda item: (item, threading.get_ident()), items, threads) == [
        (item, threading.get_ident()) for item in items
    ]


def test_the_first_error_is_raised_when_no_call_runs_any_more() -> None:
    running = set()

    def work(item: int) -> None:
        running.add(item)
        try:
            if item in (1, 2):
                raise ValueError(f"item {item}")
        finally:
            running.discard(item)

    with pytest.raises(ValueError, match="item 1"):
        each(work, range(6), threads=2)
    assert not running


def test_cores() -> None:
    assert usable_cores() >= 1
