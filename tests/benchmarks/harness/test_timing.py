import math

import numpy as np
import pytest

from benchmarks.harness.results import BenchmarkError
from benchmarks.harness.timing import ratio, settled, summarise


def clock(median: float, noise: float, blocks: int, runs: int, seed: int = 0) -> list[list[float]]:
    """Times of a machine that is ``noise`` unsteady from run to run."""
    rng = np.random.default_rng(seed)
    return (median * np.exp(noise * rng.standard_normal((blocks, runs)))).tolist()


def test_a_steady_clock_has_no_spread() -> None:
    summary = summarise([[2.0, 2.0], [2.0]])
    assert (summary.median, summary.p5, summary.p95, summary.low, summary.high) == (2.0, 2.0, 2.0, 2.0, 2.0)
    assert (summary.runs, summary.blocks, summary.spread) == (3, 2, 0.0)


def test_median_and_percentiles_are_those_of_all_runs() -> None:
    summary = summarise([list(range(1, 51)), list(range(51, 102))])
    assert summary.median == 51
    assert (summary.p5, summary.p95) == (6, 96)


def test_one_block_cannot_tell_how_well_its_median_is_known() -> None:
    summary = summarise([[1.0, 1.1, 0.9]])
    assert summary.low is summary.high is None
    assert math.isinf(summary.spread)
    assert not settled([summary], 10.0)


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(40):
        summary = summarise(clock(1.0, 0.1, blocks=8, runs=10, seed=seed))
        assert summary.low is not None
        assert summary.high is not None
        covered += summary.low <= 1.0 <= summary.high
    assert covered >= 32


def test_the_interval_narrows_with_more_blocks_and_widens_when_whole_blocks_differ() -> None:
    few, many = (summarise(clock(1.0, 0.1, blocks, 10)).spread for blocks in (4, 40))
    assert many < few
    unsteady = [[value * (1.5 if i % 2 else 1.0) for value in block] for i, block in enumerate(clock(1.0, 0.01, 6, 50))]
    assert summarise(unsteady).spread > 5 * summarise(clock(1.0, 0.01, 6, 50)).spread


def test_summaries_settle_when_all_are_known() -> None:
    steady, unsteady = summarise(clock(1.0, 0.001, 5, 20)), summarise(clock(1.0, 0.5, 3, 3))
    assert settled([steady], 0.03)
    assert not settled([steady, unsteady], 0.03)


def test_a_ratio_is_that_of_the_medians() -> None:
    assert ratio([[3.0, 3.0]], [[2.0]]).value == 1.5
    assert ratio([[3.0]], [[2.0]]).low is None
    found = ratio(clock(3.0, 0.02, 6, 10, seed=1), clock(2.0, 0.02, 6, 10, seed=2))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.1


def test_what_slows_a_round_for_both_does_not_widen_their_ratio() -> None:
    slow = [1.0, 2.0, 1.0, 3.0, 1.0, 2.5]
    ours = [[3.0 * factor] * 5 for factor in slow]
    theirs = [[2.0 * factor] * 5 for factor in slow]
    found = ratio(ours, theirs)
    assert (found.low, found.high) == pytest.approx((1.5, 1.5))
    assert summarise(ours).spread > 0.2


@pytest.mark.parametrize("blocks", [[], [[]], [[1.0], []], [[0.0]], [[-1.0]], [[math.nan]], [[math.inf]]])
def test_what_is_no_time_is_refused(blocks: list[list[float]]) -> None:
    with pytest.raises(BenchmarkError, match="expected at least one positive time in every block"):
        summarise(blocks)


def test_rounds_of_both_must_be_as_many() -> None:
    with pytest.raises(BenchmarkError, match="got 1 and 2"):
        ratio([[1.0]], [[1.0], [1.0]])


def test_figures_are_the_same_each_time() -> None:
    blocks = clock(1.0, 0.2, 5, 7)
    assert summarise(blocks) == summarise(blocks)
