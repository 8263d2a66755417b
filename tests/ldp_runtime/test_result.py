from concurrent.futures import CancelledError

import numpy as np
import pytest

from ldp_runtime.errors import BackendError, NumericsError
from ldp_runtime.result import PendingResult, Result


def a_result(**fields: object) -> Result:
    common = {"restored": None, "blur_logits": None, "timings": {}, "backend": "b", "precision": "fp32"}
    return Result(**{**common, "blur_map": None, **fields})  # type: ignore[arg-type]


def test_a_result_is_made_once_and_kept() -> None:
    calls = []
    pending = PendingResult(lambda: calls.append(1) or a_result(), lambda: calls.append(2))
    assert pending.result() is pending.result()
    pending.cancel()  # too late: nothing to give up
    assert calls == [1]


def test_an_error_is_raised_at_every_call() -> None:
    pending = PendingResult.failed(NumericsError("NaN"))
    for _ in range(2):
        with pytest.raises(NumericsError, match="NaN"):
            pending.result()


def test_a_cancelled_pair_has_no_result() -> None:
    calls = []
    pending = PendingResult(a_result, lambda: calls.append("cancelled"))
    pending.cancel()
    pending.cancel()
    assert calls == ["cancelled"]
    with pytest.raises(CancelledError):
        pending.result()


def test_a_pair_whose_result_nobody_asks_for_is_given_up() -> None:
    calls = []

    def cancel() -> None:
        calls.append("cancelled")
        raise BackendError("the GPU failed")  # which nobody is left to hear of

    pending = PendingResult(a_result, cancel)
    del pending
    assert calls == ["cancelled"]
    pending = PendingResult(a_result, cancel)
    pending.result()
    del pending
    assert calls == ["cancelled"]


def test_a_blur_map_is_made_when_it_is_read() -> None:
    calls = []
    result = a_result(blur_map=lambda: calls.append(1) or np.ones((2, 3), np.float32))
    assert calls == []
    assert result.blur_map.shape == result.blur_map.shape == (2, 3)
    assert calls == [1]
    assert a_result().blur_map is None
