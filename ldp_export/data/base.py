"""What every data set of dual-pixel pairs looks like to training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import LDPError

SPLITS = ("train", "val", "test")
"""The names of splits; a data set may lack some of them."""


class DataError(LDPError):
    """A data set is not laid out as its authors publish it, or a file of it is damaged."""


@dataclass(frozen=True, eq=False)
class PairSample:
    """One dual-pixel pair with what is known of it.

    Attributes:
        name: Unique in the data set and safe as a file stem: letters, digits, ``-``, ``_`` and ``.``.
        left: Left view ``(h, w, 3)`` RGB, uint8 or uint16.
        right: Right view, the same shape and dtype.
        target: The all-in-focus image, the same shape and dtype, or None where the data set has none.
        disparity: DP disparity in px ``(h, w)`` float32, signed, NaN where unknown; or None.
        coc: Signed radius of the circle of confusion in px ``(h, w)`` float32, positive behind the focal plane, NaN
            where unknown; or None.
        relative_disparity: The size of the DP disparity up to an unknown factor and offset, ``(h, w)`` float32, for
            data sets that know no more; or None.

    Raises:
        DataError: The arrays do not fit together.
    """

    name: str
    left: NDArray[Any]
    right: NDArray[Any]
    target: NDArray[Any] | None = None
    disparity: NDArray[np.float32] | None = None
    coc: NDArray[np.float32] | None = None
    relative_disparity: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        left = self.left
        if left.ndim != 3 or left.shape[2] != 3 or left.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"{self.name}: expected views (h, w, 3) of uint8 or uint16, got {left.shape} of {left.dtype}; "
                "convert them"
            )
        for what, image in (("right view", self.right), ("target", self.target)):
            if image is not None and (image.shape != left.shape or image.dtype != left.dtype):
                raise DataError(
                    f"{self.name}: expected a {what} like the left view, {left.shape} of {left.dtype}, got "
                    f"{image.shape} of {image.dtype}; download the data set again"
                )
        for what, field in (
            ("disparity", self.disparity),
            ("circle of confusion", self.coc),
            ("relative disparity", self.relative_disparity),
        ):
            if field is not None and (field.shape != left.shape[:2] or field.dtype != np.float32):
                raise DataError(
                    f"{self.name}: expected a {what} map {left.shape[:2]} of float32, got {field.shape} of "
                    f"{field.dtype}; download the data set again"
                )

    @property
    def peak(self) -> int:
        """The largest value of the views' dtype: 255 or 65535."""
        return int(np.iinfo(self.left.dtype).max)


class PairDataset(Protocol):
    """A split of a data set. Files are listed when it is opened and decoded when a pair is asked for.

    Attributes:
        name: Of the data set, as ``open_dataset`` takes it.
        split: "train", "val" or "test".
    """

    name: str
    split: str

    def __len__(self) -> int:
        """How many pairs there are."""

    def __getitem__(self, index: int) -> PairSample:
        """The pair at ``index`` from 0; ``IndexError`` past the end. Instances can be pickled for worker processes."""

    def names(self) -> tuple[str, ...]:
        """The name of every pair, in order, without decoding anything."""

    def subsets(self) -> dict[str, frozenset[str]]:
        """Named parts of the split that papers report apart, as names of pairs; empty where there are none."""


def iterate(dataset: PairDataset) -> Iterator[PairSample]:
    """Decodes the pairs of a data set one after the other."""
    return (dataset[index] for index in range(len(dataset)))


def spread(dataset: PairDataset, most: int) -> Iterator[PairSample]:
    """Decodes at most ``most`` pairs, spread evenly over the data set, one after the other."""
    chosen = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)
    return (dataset[int(index)] for index in chosen)
