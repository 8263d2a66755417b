import argparse
import math

import pytest

from benchmarks.harness.options import check_positive, split_backend
from benchmarks.harness.results import BenchmarkError


def test_only_positive_numbers_pass() -> None:
    check_positive(argparse.Namespace(rounds=1, io_threads=None), "rounds", "io_threads")
    for value in (0, -1, math.nan):
        with pytest.raises(BenchmarkError, match="expected --io-threads above 0, got"):
            check_positive(argparse.Namespace(io_threads=value), "io_threads")


def test_a_backend_may_have_a_precision() -> None:
    assert split_backend("auto") == ("auto", "auto")
    assert split_backend("onnxruntime:fp16") == ("onnxruntime", "fp16")
