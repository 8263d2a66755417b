"""The check of a pair before it is restored: faults found, corrected, warned of or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import ImageError
from ldp_runtime.paircheck.correct import Correction
from ldp_runtime.paircheck.measure import LEAST_SHIFT, Measurement, measure, smoothness

MATCH_THRESHOLD = 0.5
"""Views that correlate less at 16 px are taken for different photos. Of 380 pairs of unrelated photos (scikit-image's)
99 % correlate less; each photo correlates more than 0.6 with itself when one copy is shifted by 5 % of the
width, both are blurred over twice that shift, and noise of 3 % is added."""

_EXPOSURE = 1.06  # ratio of linear light; good pairs are within 2 %
_TWICE = (1.8, 2.2)  # of the sum to one view
_ACROSS = (0.3, 0.06)  # px, and px of the reduced copy; good pairs are within 0.17 px and 0.03
_OTHER_AXIS = 0.6  # what shifts along the other axis leave, a share of what those along this one leave
_SAME_AXIS = 1.3
_BLOCKS = 24  # with texture, at least, to speak of shifts and sharpness
_SMOOTH = (1.5, 1.75)  # see ``measure.smoothness``
_MATCHED = 0.7  # see ``Measurement.matched``

_SHARPER = 1.5  # of one half beside the sum, over the share of details not in common; good pairs are within 1

_OR_AUTO = ", or give --check auto"
_OTHER = {"horizontal": "vertical", "vertical": "horizontal"}
_ACROSS_WORDS = {"horizontal": ("lower", "higher"), "vertical": ("further right", "further left")}


@dataclass(frozen=True)
class Fault:
    """Something wrong with a pair.

    Attributes:
        kind: ``"identical"``, ``"unrelated"``, ``"axis"``, ``"shift"``, ``"exposure"``, ``"sum"``, ``"linear"`` or
            ``"bits"``.
        what: What is wrong, for people.
        fix: What helps.
        done: What the correction does; None if there is none.
        refused: Restoring the pair would only do harm.
    """

    kind: str
    what: str
    fix: str
    done: str | None = None
    refused: bool = False

    def sentence(self, mode: str) -> str:
        """The note of a result, or the error where the pair is refused."""
        if mode != "auto":
            return f"{self.what}; {self.fix}"
        anyway = ", or give --check warn to go on" if self.refused else ""
        return f"{self.what}; {self.done or self.fix + anyway}"


@dataclass(frozen=True)
class PairCheck:
    """What a check found.

    Attributes:
        axis: The direction of the disparity that was stated.
        measurement: What was measured.
        faults: What is wrong.
        correction: What would put it right.
        mode: One of ``modes.MODES``.
    """

    axis: str
    measurement: Measurement
    faults: tuple[Fault, ...]
    correction: Correction
    mode: str = "auto"

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each fault."""
        return tuple(fault.sentence(self.mode) for fault in self.faults)

    @property
    def disparity(self) -> float:
        """Largest disparity in px: the 95th percentile over the blocks with texture, sizes alone."""
        shifts = self.measurement.shifts(self.correction.axis)
        usable = np.abs(shifts.along[shifts.weight > 0])
        halved = 1 if self.correction.view is None else 2  # the sum lies in the middle of both views
        return halved * float(np.quantile(usable, 0.95)) if usable.size >= _BLOCKS else 0.0

    def raise_refused(self) -> None:
        """Raises ImageError where restoring the pair would only do harm and the mode is ``"auto"``."""
        for fault in self.faults:
            if fault.refused and self.mode == "auto":
                raise ImageError(fault.sentence(self.mode))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        m = self.measurement
        shifts = m.shifts(self.correction.axis)
        return {
            "axis": self.correction.axis,
            "exposure_ratio": round(m.ratio, 4),
            "disparity_px": round(self.disparity, 3),
            "shift_across_px": round(shifts.across, 2) + 0.0,  # no -0
            "bits": m.coding.bits,
            "linear": m.coding.linear,
            "correlation": round(m.correlation, 4),
            "faults": [
                {"kind": f.kind, "what": f.what, "fix": f.fix, "correction": f.done, "refused": f.refused}
                for f in self.faults
            ],
        }


def check_pair(
    left: NDArray[Any],
    right: NDArray[Any],
    *,
    axis: str = "horizontal",
    mode: str = "auto",
    names: tuple[str, str] = ("the left view", "the right view"),
    linear: bool | None = None,
) -> PairCheck:
    """Checks a pair.

    Args:
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view, of the same shape and dtype.
        axis: The direction of the disparity that was stated.
        mode: ``"auto"`` or ``"warn"``.
        names: What the views are called in sentences.
        linear: Whether the values are linear light, where the file says so.
    """
    m = measure(left, right, linear=linear)
    if m.identical:
        what = f"{names[0]} and {names[1]} hold the same picture, so there is no disparity to restore from"
        flat = int(left.max()) == int(left.min())  # a blank frame is no mistake in the choice of files
        found = [Fault("identical", what, "give the two views of a dual-pixel pair", refused=not flat)]
        return PairCheck(axis, m, tuple(found), Correction(m.coding, axis), mode)
    if m.likeness < MATCH_THRESHOLD and m.matched < _MATCHED:
        what = (
            f"{names[0]} and {names[1]} do not look like two views of one photo (correlation {m.likeness:.2f}, "
            f"expected at least {MATCH_THRESHOLD})"
        )
        refused = np.isfinite(m.matched)  # a picture too small for shifts says too little
        found = [Fault("unrelated", what, "check that they belong together", refused=bool(refused))]
        return PairCheck(axis, m, tuple(found), Correction(m.coding, axis), mode)
    true_axis, faults = _find_axis(m, left, axis, names)
    shift = 0.0 if any(fault.done is None for fault in faults) else _misalignment(m, true_axis)
    if shift:
        word = _ACROSS_WORDS[true_axis][shift < 0]
        what = f"{names[1]} lies {abs(shift):.2g} px {word} than {names[0]}, across the disparity"
        faults.append(Fault("shift", what, f"crop both alike{_OR_AUTO}", "it was moved back"))
    view, gains, exposure = _exposure(m, names)
    faults += [*exposure, *_coding(m)]
    return PairCheck(axis, m, tuple(faults), Correction(m.coding, true_axis, gains, view, shift), mode)


def _find_axis(m: Measurement, left: NDArray[Any], axis: str, names: tuple[str, str]) -> tuple[str, list[Fault]]:
    """The direction of the disparity, and what is wrong with the one that was stated."""
    other = _OTHER[axis]
    here, there = m.shifts(axis), m.shifts(other)
    if min(here.textured, there.textured) < _BLOCKS:
        return axis, []
    better = there.left_over / max(here.left_over, 1e-9)
    wrong = Fault(
        "axis",
        f"the disparity lies along {'y' if other == 'vertical' else 'x'}, and the axis was given as {axis}",
        f"give --axis {other}",
        f"the pair was restored with --axis {other}",
    )
    if better < _OTHER_AXIS and there.extent() > LEAST_SHIFT:
        return other, [wrong]
    if here.uniform and _significant(here.across, m) and better < _SAME_AXIS:
        # All blocks shift alike across the axis: a misaligned pair, or a uniform blur and the other axis.
        smooth = smoothness(left, here.across)
        if smooth > _SMOOTH[1] or (smooth > _SMOOTH[0] and better < 0.95):
            return other, [wrong]
        if smooth > _SMOOTH[0] or better < 0.9:
            what = (
                f"all of {names[1]} is shifted by {abs(here.across):.2g} px across the disparity: the pair is "
                "misaligned, or its disparity lies along the other axis"
            )
            return axis, [Fault("axis", what, f"align it, or give --axis {other}")]
    return axis, []


def _significant(across: float, m: Measurement) -> bool:
    return abs(across) > max(_ACROSS[0], _ACROSS[1] * m.scale)


def _misalignment(m: Measurement, axis: str) -> float:
    shifts = m.shifts(axis)
    return shifts.across if shifts.textured >= _BLOCKS and _significant(shifts.across, m) else 0.0


def _exposure(m: Measurement, names: tuple[str, str]) -> tuple[str | None, tuple[float, float], list[Fault]]:
    """Which of both is a single view beside the sum, gains of linear light, and the fault."""
    ratio, unlike = m.ratio, 1 - m.correlation**2
    times = max(ratio, 1 / ratio)
    done = "the other view was made of their difference"
    if times > _EXPOSURE:
        total = 0 if ratio < 1 else 1
        sharper = m.sharper if total == 0 else -m.sharper
        if _TWICE[0] < times < _TWICE[1] and unlike > 0.004 and sharper > _SHARPER * unlike:
            what = (
                f"{names[total]} is the sum of both views and {names[1 - total]} a single view at half the light, as "
                "raw splitters write them"
            )
            gains = (1.0, 1 / ratio) if total == 0 else (ratio, 1.0)
            return ("right", "left")[total], gains, [Fault("sum", what, "give the two views", done)]
        what = f"{names[1]} has {ratio:.2f} times the light of {names[0]}"
        fix = f"develop both views with one exposure{_OR_AUTO}"
        return None, (1.0, 1 / ratio), [Fault("exposure", what, fix, "it was matched to the other")]
    side = 1 if m.sharper > 0 else -1
    textured = min(m.horizontal.textured, m.vertical.textured) >= _BLOCKS
    if textured and unlike > 0.008 and abs(m.sharper) > _SHARPER * unlike and 0.6 < side * m.asymmetry < 1.4:
        total = 0 if side > 0 else 1
        what = f"{names[total]} is the sum of both views and {names[1 - total]} a single view"
        return ("right", "left")[total], (1.0, 1.0), [Fault("sum", what, "give the two views", done)]
    return None, (1.0, 1.0), []


def _coding(m: Measurement) -> list[Fault]:
    coding, faults = m.coding, []
    if coding.bits != coding.depth:
        what = f"the values use {coding.bits} of {coding.depth} bits (at most {coding.full}), so the picture is dark"
        done = "they were scaled, and the restored picture has the whole range"
        faults.append(Fault("bits", what, f"scale them to the whole range{_OR_AUTO}", done))
    if coding.linear:
        what = "the values look like linear light, and the model expects sRGB"
        done = (
            "they were encoded for the model, and the restored picture is linear again (--check off if they are not "
            "linear)"
        )
        faults.append(Fault("linear", what, f"develop the photo with a tone curve{_OR_AUTO}", done))
    return faults
