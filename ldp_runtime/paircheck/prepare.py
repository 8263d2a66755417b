"""A pair made ready for the chain, and its result taken back: what a check corrects, and the scale."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_runtime.paircheck.check import PairCheck, check_pair
from ldp_runtime.result import Result
from ldp_runtime.stages.scale_choice import AUTO, SCALES, fitting_scale
from ldp_runtime.stages.scales import blend_full_size, reduce_view

Image = NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """A pair made ready.

    Attributes:
        left: The left view for the chain.
        right: The right view.
        axis: Direction of the disparity.
        check: What was found.
        scale: Px of the photo per px of what the chain restores.
        chosen: Whether the disparity chose the scale, not the user.
        full: The corrected views at full size; None at scale 1.
        dtype: Of the views that were given.
        seconds: What this took.
    """

    left: Image
    right: Image
    axis: str
    check: PairCheck
    scale: int
    chosen: bool
    full: tuple[Image, Image] | None
    dtype: np.dtype[Any]
    seconds: float

    @property
    def pairs(self) -> list[tuple[Image, Image]]:
        """What the chain restores.

        At a smaller scale, which costs so much less, these are two: the pair, and the same turned by 180 degrees, where
        left is right: what both agree on is better than either.
        """
        if self.full is None:
            return [(self.left, self.right)]
        return [(self.left, self.right), (_turned(self.right), _turned(self.left))]

    def finish(self, results: list[Result]) -> Result:
        """The result as the caller wants it, of those of ``pairs``: at full size, in the coding of the views."""
        begin = time.perf_counter()
        result = results[0]
        notes = self.check.notes if self.check.mode != "off" else ()
        if self.full is not None:
            self._enlarge(result, results[1:])
        if self.full is not None and self.chosen:
            notes += (
                f"the disparity reaches {self.check.disparity:.1f} px; the pair was restored at 1/{self.scale} of its "
                "size, where it fits the model, and sharp parts keep their detail (--scale 1 restores at full size)",
            )
        if self.check.mode == "auto" and result.restored is not None:
            result.restored = self.check.correction.undo(result.restored, self.dtype)
        result.notes = (*notes, *dict.fromkeys(note for each in results for note in each.notes))
        result.check, result.scale = self.check, 1 / self.scale
        stages = {stage: sum(each.timings.get(stage, 0.0) for each in results) for stage in result.timings}
        result.timings = {"check": self.seconds, **stages}
        if self.full is not None:
            result.timings["enlarge"] = time.perf_counter() - begin
        return result

    def _enlarge(self, result: Result, turned: list[Result]) -> None:
        assert self.full is not None
        size = self.full[0].shape[1::-1]
        small = result.blur_map
        if result.restored is not None:
            pictures = [result.restored, *(_turned(each.restored) for each in turned)]
            result.restored = blend_full_size(pictures, self.full, (self.left, self.right), self.scale)
        if small is not None:
            result.replace_blur_map(functools.partial(_enlarged_map, small, size, self.scale))


def _turned(picture: Image) -> Image:
    return np.ascontiguousarray(picture[::-1, ::-1])


def _enlarged_map(small: Image, size: tuple[int, int], n: int) -> Image:
    width, height = size
    large = cv2.resize(small, (small.shape[1] * n, small.shape[0] * n), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(large[:height, :width])


def prepare(
    left: Image,
    right: Image,
    axis: str,
    *,
    mode: str,
    scale: str,
    blur_range: float,
    linear: bool | None = None,
) -> Prepared:
    """Checks a pair, corrects it, and reduces it where its blur is beyond the model.

    Args:
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view, of the same shape and dtype.
        axis: The direction of the disparity that was stated.
        mode: One of ``modes.MODES``; with ``"off"`` and scale 1 there is nothing to prepare.
        scale: ``"auto"`` or a name of ``scales.SCALES``.
        blur_range: Largest radius in px that the model knows.
        linear: Whether the values are linear light; None judges by the picture.

    Raises:
        ImageError: Restoring the pair would only do harm.
    """
    begin = time.perf_counter()
    n = SCALES.get(scale, 1)
    dtype = left.dtype
    check = check_pair(left, right, axis=axis, mode=mode, linear=linear)
    check.raise_refused()
    if mode == "auto":
        left, right = check.correction.apply(left, right)
        axis = check.correction.axis
    chosen = scale == AUTO and mode != "off"
    if chosen:
        n = fitting_scale(check.disparity, blur_range)
    full = None
    if n > 1:
        full = left, right
        left, right = reduce_view(left, n), reduce_view(right, n)
    return Prepared(left, right, axis, check, n, chosen, full, dtype, time.perf_counter() - begin)
