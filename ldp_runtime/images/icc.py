"""ICC profiles of a pair: whether they say the same, and one view brought into the other's."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.linear import srgb_to_linear

_SAME = 2e-3  # of a matrix entry or a curve
_CURVE = np.linspace(0, 1, 1025)
_ROWS = 256
_NAMES = ("r", "g", "b")

_SRGB_TO_D50 = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
"""The matrix of sRGB in ICC profiles (IEC 61966-2-1, adapted to D50): what a file without a profile is taken for."""


@dataclass(frozen=True, eq=False)
class Profile:
    """An RGB profile of a matrix and three curves.

    Attributes:
        matrix: ``(3, 3)``, linear RGB to XYZ.
        curves: ``(3, 1025)``, linear light of values from 0 to 1.
    """

    matrix: NDArray[np.float64]
    curves: NDArray[np.float64]

    @classmethod
    def srgb(cls) -> Profile:
        """The profile of files without one."""
        return cls(_SRGB_TO_D50, np.stack([srgb_to_linear(_CURVE)] * 3))

    @classmethod
    def parse(cls, content: bytes) -> Profile | None:
        """Reads a profile; None if it is damaged or of another kind, such as one of look-up tables."""
        try:
            (count,) = struct.unpack_from(">I", content, 128)
            entries = [struct.unpack_from(">4sII", content, 132 + 12 * i) for i in range(min(count, 100))]
            tags = {name: content[start : start + size] for name, start, size in entries}
            if content[16:20] != b"RGB " or b"A2B0" in tags:
                return None
            columns = [np.frombuffer(tags[f"{c}XYZ".encode()][8:20], ">i4") / 65536 for c in _NAMES]
            curves = [_read_curve(tags[f"{c}TRC".encode()]) for c in _NAMES]
        except (struct.error, KeyError, ValueError, ZeroDivisionError, OverflowError):
            return None
        matrix, stacked = np.stack(columns, axis=1).astype(np.float64), np.stack(curves)
        usable = np.isfinite(stacked).all() and abs(np.linalg.det(matrix)) > 1e-4
        return cls(matrix, stacked) if usable else None

    @property
    def linear(self) -> bool:
        """Whether values are linear light."""
        return bool(np.abs(self.curves - _CURVE).max() < 0.01)

    def equals(self, other: Profile) -> bool:
        """Whether both mean the same colours, whatever their texts say."""
        return bool(
            np.abs(self.matrix - other.matrix).max() < _SAME and np.abs(self.curves - other.curves).max() < _SAME
        )

    def convert(self, pixels: NDArray[Any], other: Profile) -> NDArray[Any]:
        """Pixels ``(h, w, 3)`` of this profile in the values of another."""
        top = np.iinfo(pixels.dtype).max
        matrix = (np.linalg.inv(other.matrix) @ self.matrix).astype(np.float32).T
        levels = np.arange(top + 1) / top
        tables = [np.interp(levels, _CURVE, curve).astype(np.float32) for curve in self.curves]
        out = np.empty(pixels.shape, pixels.dtype.newbyteorder("="))
        for y in range(0, len(pixels), _ROWS):
            rows = pixels[y : y + _ROWS]
            light = np.stack([tables[c][rows[..., c]] for c in range(3)], axis=-1) @ matrix
            for c, curve in enumerate(other.curves):
                values = np.interp(light[..., c], np.maximum.accumulate(curve), _CURVE)
                out[y : y + _ROWS, :, c] = np.rint(values * top)
        return out


def _read_curve(tag: bytes) -> NDArray[np.float64]:
    kind = tag[:4]
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = np.frombuffer(tag[12 : 12 + 2 * count], ">u2").astype(np.float64)
        if count == 0:
            return _CURVE
        if count == 1:
            return np.asarray(_CURVE ** (values[0] / 256))
        return np.interp(_CURVE, np.linspace(0, 1, count), values / 65535)
    if kind != b"para":
        raise ValueError("not a curve")
    (form,) = struct.unpack_from(">H", tag, 8)
    g, *rest = np.frombuffer(tag[12 : 12 + 4 * (1, 3, 4, 5, 7)[min(form, 4)]], ">i4") / 65536
    a, b, c, d, e, f = [*map(float, rest), *(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[len(rest) :]]
    if form in (1, 2):  # the bend lies where the power begins
        d, e, f, c = -b / a, (c if form == 2 else 0.0), (c if form == 2 else 0.0), 0.0
    power = np.maximum(a * _CURVE + b, 0) ** g + e
    return np.asarray(np.where(d <= _CURVE, power, c * _CURVE + f)) if form else np.asarray(_CURVE**g)


def match_profiles(
    first: Photo, second: Photo, names: tuple[str | os.PathLike[str], str | os.PathLike[str]]
) -> tuple[Photo, bool | None, tuple[str, ...]]:
    """Brings the second photo into the profile of the first where they differ.

    Returns:
        The second photo; whether the values are linear light, None where no profile says; and what to tell people.
    """
    profile = None if first.icc_profile is None else Profile.parse(first.icc_profile)
    linear = None if profile is None else profile.linear
    if first.icc_profile == second.icc_profile or first.grey or second.grey:
        return second, linear, ()
    pair = [
        Profile.srgb() if photo.icc_profile is None else Profile.parse(photo.icc_profile) for photo in (first, second)
    ]
    if pair[0] is None or pair[1] is None:
        text = f"{names[0]} and {names[1]} have different ICC profiles; export both with the same profile"
        return second, linear, (text,)
    if pair[0].equals(pair[1]):
        return second, linear, ()
    text = (
        f"{names[0]} and {names[1]} have different ICC profiles; {names[1]} was converted to that of the other (export "
        "both with the same profile)"
    )
    return replace(second, pixels=pair[1].convert(second.pixels, pair[0])), linear, (text,)
