from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from ldp_runtime.service.problems import ProblemError
from ldp_runtime.service.results import Results


class Kept:
    """A job that has ended, as ``Results`` sees one."""

    def __init__(self, size: int, finished: float) -> None:
        self.finished = finished
        self.future: Future[object] = Future()
        data = bytes(size)
        files = {name: SimpleNamespace(data=data) for name in ("image", "after")}  # one and the same
        self.future.set_result(SimpleNamespace(files=files))


def test_results_are_bounded_in_age_bytes_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ldp_runtime.service.results.time.monotonic", lambda: now)
    results = Results(seconds=50, most_bytes=100, count=3)

    def add(size: int, finished: float) -> str:
        return results.add(Kept(size, finished))  # type: ignore[arg-type]

    old = add(40, 60)
    kept = [add(40, 80), add(40, 81)]
    with pytest.raises(ProblemError, match="no such restoration"):
        results.get(old)  # 120 bytes are too many
    assert all(results.get(name) for name in kept)
    now = 130.5  # the first of both is too old
    with pytest.raises(ProblemError):
        results.get(kept[0])
    large = add(1000, 130)  # the newest is kept, however large
    assert results.get(large)
    with pytest.raises(ProblemError):
        results.get(kept[1])
    results.remove(large)
    assert len(results) == 0
    small = [add(1, 130 + i) for i in range(4)]
    results.purge()
    assert len(results) == 3
    assert len({*small, large}) == 5  # no two names alike
