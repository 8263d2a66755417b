"""The pairs that quantisation calibrates and measures with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ldp_export.bundling.quantize_graphs import QuantizeError
from ldp_runtime.errors import counted

PAIRS = 32
"""Pairs of each set where no number is given; of eight, one that is nearly sharp decides the mean PSNR."""

LARGEST_SIDE = 512
"""Pairs are cut to this many px: a layer's range does not grow with the image."""

Pixels = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LabelledPair:
    """A pair with its target, ``(h, w, 3)`` uint8 or uint16 each."""

    left: Pixels
    right: Pixels
    target: Pixels


@dataclass(frozen=True)
class PairSets:
    """The pairs of a quantisation; no pair is in two of them.

    Attributes:
        description: What they are, for the manifest.
        calibration: Give the ranges of the activations.
        selection: Layers are chosen with these.
        check: Sets by name that nothing is chosen with; the gates are on these.
    """

    description: str
    calibration: Sequence[LabelledPair]
    selection: Sequence[LabelledPair]
    check: Mapping[str, Sequence[LabelledPair]]


def simulated_pairs(count: int, seed: int, role: int) -> list[LabelledPair]:
    """Random layered scenes of 256 x 256 px from scikit-image's photographs; the same for the same arguments.

    Args:
        count: How many.
        seed: Seed of everything.
        role: Pairs of different roles differ.
    """
    from ldp_export.simulation.scenes import sample_scenes

    scenes = sample_scenes(count, seed, role)
    return [LabelledPair(scene["left"], scene["right"], scene["target"]) for scene in scenes]


def simulated_sets(count: int = PAIRS, seed: int = 0) -> PairSets:
    """Simulated pairs for every purpose, and the motorcycle sample to check on.

    Args:
        count: Pairs of each set.
        seed: Seed of the pairs.
    """
    from ldp_export.simulation.samples import MOTORCYCLE, focus_setting

    sample = focus_setting(MOTORCYCLE.focus[0])
    calibration, selection, check = (simulated_pairs(count, seed, role) for role in range(3))
    return PairSets(
        f"simulated, {counted(count, 'pair')} of 256 x 256 px a set, seed {seed}",
        calibration,
        selection,
        {"simulated": check, "motorcycle": [LabelledPair(sample.left, sample.right, sample.target)]},
    )


def data_sets(name: str, folder: Path, count: int = PAIRS) -> PairSets:
    """Pairs of a data set: of its training split to calibrate and choose with, of its test split to check on.

    Args:
        name: A name of ``ldp_export.data.DATASETS``.
        folder: Where it is.
        count: At most so many pairs of each set, spread evenly over the split.

    Raises:
        LDPError: No such data set, no such folder, or too few pairs with a target.
    """
    from ldp_export.data import find_kind

    splits = find_kind(name).splits
    held_out = "test" if "test" in splits else "val"
    train = _spread(name, folder, "train" if "train" in splits else held_out, 2 * count)
    check = _spread(name, folder, held_out, count)
    if len(train) < 2 or not check:
        raise QuantizeError(
            f"expected at least two pairs with a target to calibrate with and one to check on in {folder}, got "
            f"{len(train)} and {len(check)}; give another data set or leave --data out"
        )
    return PairSets(
        f"{name}, up to {counted(count, 'pair')} per set", train[::2], train[1::2], {f"{name} {held_out}": check}
    )


def _spread(name: str, folder: Path, split: str, most: int) -> list[LabelledPair]:
    from ldp_export.data import open_dataset, spread

    samples = spread(open_dataset(name, folder, split), most)
    return [_middle(LabelledPair(s.left, s.right, s.target), LARGEST_SIDE) for s in samples if s.target is not None]


def _middle(pair: LabelledPair, side: int) -> LabelledPair:
    """The middle of a pair, at most ``side`` px a side."""
    top, start = (max(0, (length - side) // 2) for length in pair.left.shape[:2])
    return LabelledPair(*(v[top : top + side, start : start + side] for v in (pair.left, pair.right, pair.target)))
