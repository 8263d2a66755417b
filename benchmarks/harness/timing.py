"""Statistics of times: the median, how far runs spread, and how well the median itself is known.

Runs come in blocks: what one process measured in one round. Runs of a block share the state of the machine and of their
process, so they are not independent; the interval of the median comes from resampling blocks, then runs within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.results import BenchmarkError

CONFIDENCE = 0.95
RESAMPLES = 1000
_SEED = 0

Blocks = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Summary:
    """Times in seconds.

    Attributes:
        median: Of all runs.
        p5: A run in twenty is quicker.
        p95: A run in twenty is slower.
        low: Lower end of the 95 % interval of the median; None with a single block, which cannot tell.
        high: Its upper end.
        runs: How many runs.
        blocks: In how many blocks.
    """

    median: float
    p5: float
    p95: float
    low: float | None
    high: float | None
    runs: int
    blocks: int

    @property
    def spread(self) -> float:
        """Half of the interval as a share of the median; infinite with a single block."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as another.

    Attributes:
        value: Ratio of the medians.
        low: Lower end of its 95 % interval; None with a single block.
        high: Its upper end.
    """

    value: float
    low: float | None
    high: float | None


def summarise(blocks: Blocks) -> Summary:
    """Summarises runs.

    Args:
        blocks: Seconds, one sequence a block, none empty.

    Raises:
        BenchmarkError: There is no run, or a time that is not a positive number.
    """
    checked = _checked(blocks)
    runs = np.concatenate(checked)
    low, high = _interval(_medians(checked, 1)) if len(checked) > 1 else (None, None)
    p5, p95 = (float(value) for value in np.percentile(runs, (5, 95)))
    return Summary(float(np.median(runs)), p5, p95, low, high, runs.size, len(checked))


def ratio(blocks: Blocks, to: Blocks) -> Ratio:
    """Median of ``blocks`` over the median of ``to``.

    Block i of both was measured in the same round. Rounds are resampled for both at once, so what slows a whole round
    down does not widen the interval.

    Args:
        blocks: Seconds by round.
        to: Seconds by round, as many rounds.

    Raises:
        BenchmarkError: There is no run, a time that is not a positive number, or another number of rounds.
    """
    ours, theirs = _checked(blocks), _checked(to)
    if len(ours) != len(theirs):
        raise BenchmarkError(f"expected as many rounds of both, got {len(ours)} and {len(theirs)}; drop the odd one")
    value = float(np.median(np.concatenate(ours)) / np.median(np.concatenate(theirs)))
    if len(ours) == 1:
        return Ratio(value, None, None)
    medians = [_medians(side, seed) for seed, side in enumerate((ours, theirs), start=1)]
    return Ratio(value, *_interval(medians[0] / medians[1]))


def settled(summaries: Sequence[Summary], target: float) -> bool:
    """Whether the median of every summary is known to within a share ``target`` of itself."""
    return all(summary.spread <= target for summary in summaries)


def _checked(blocks: Blocks) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(block, dtype=np.float64) for block in blocks]
    if not arrays or not all(array.size and np.isfinite(array).all() and (array > 0).all() for array in arrays):
        raise BenchmarkError(f"expected at least one positive time in every block, got {[*map(list, blocks)]}")
    return arrays


def _medians(blocks: list[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Medians ``(RESAMPLES,)`` of runs drawn with replacement from blocks drawn with replacement.

    Which blocks are drawn does not depend on ``seed``, the runs drawn from them do: that pairs rounds in ``ratio``.
    """
    sizes = np.array([block.size for block in blocks])
    most = int(sizes.max())
    padded = np.stack([np.pad(block, (0, most - block.size)) for block in blocks])  # (blocks, most)
    picks = np.random.default_rng(_SEED).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    places = np.random.default_rng(seed).random((*picks.shape, most))
    drawn = padded[picks[..., None], (places * sizes[picks][..., None]).astype(np.intp)]  # (RESAMPLES, blocks, most)
    drawn[np.arange(most) >= sizes[picks][..., None]] = np.inf  # as many runs of a block as it has
    ordered = np.sort(drawn.reshape(RESAMPLES, -1), axis=1)
    counts = sizes[picks].sum(axis=1)
    middle = [np.take_along_axis(ordered, at[:, None], axis=1)[:, 0] for at in ((counts - 1) // 2, counts // 2)]
    medians: NDArray[np.float64] = (middle[0] + middle[1]) / 2
    return medians


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
