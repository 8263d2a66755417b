"""The optics of a dual-pixel camera: the thin lens, and the point spread function of a photodiode.

The conventions are those of ``simulate.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import LDPError

FloatArray = NDArray[np.float32]


class SimulationError(LDPError):
    """The simulator was given something that it cannot turn into a DP pair."""


@dataclass(frozen=True)
class ThinLens:
    """A thin lens in front of a sensor; turns depth into the signed CoC radius.

    Attributes:
        focal_length: Focal length in millimetres.
        f_number: Focal length over the diameter of the entrance pupil.
        focus_distance: Distance from the lens to the plane in focus, in millimetres.
        pixel_pitch: Distance between pixel centres, in micrometres.
    """

    focal_length: float
    f_number: float
    focus_distance: float
    pixel_pitch: float

    def __post_init__(self) -> None:
        for name in ("focal_length", "f_number", "focus_distance", "pixel_pitch"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise SimulationError(f"{name} must be a positive number, got {value}")
        if self.focus_distance <= self.focal_length:
            raise SimulationError(
                f"focus distance {self.focus_distance} mm must exceed the focal length {self.focal_length} mm"
            )

    def coc_radius(self, depth: FloatArray) -> FloatArray:
        """Signed CoC radius in pixels at ``depth`` (any shape, millimetres, may be inf).

        The diameter on the sensor is ``f^2 / (N (s - f)) * (z - s) / z``, with ``s`` the focus distance and ``z`` the
        depth.
        """
        depth = np.asarray(depth, dtype=np.float64)
        if not (depth > 0).all():
            raise SimulationError("every depth must be positive; fill the holes of the depth map first")
        aperture = self.focal_length**2 / (self.f_number * (self.focus_distance - self.focal_length))
        diameter_mm = aperture * (1 - self.focus_distance / depth)
        return (diameter_mm / 2 / (self.pixel_pitch * 1e-3)).astype(np.float32)


def coc_from_disparity(disparity: FloatArray, focus_disparity: float, max_radius: float) -> FloatArray:
    """Signed CoC radius ``(h, w)`` in pixels from a stereo disparity map ``(h, w)`` (larger is nearer).

    Disparity is affine in inverse depth, and so is the thin lens's CoC: ``r = k (focus_disparity - disparity)``. The
    factor ``k`` is chosen so that the largest |r| in the scene is ``max_radius``.
    """
    offset = np.float32(focus_disparity) - np.asarray(disparity, dtype=np.float32)
    if not np.isfinite(offset).all():
        raise SimulationError("the disparity map has NaN or infinite values; fill its holes first")
    largest = float(np.abs(offset).max())
    if largest == 0:
        raise SimulationError("the disparity map is constant and equals the focus disparity: nothing would be blurred")
    return (offset * (max_radius / largest)).astype(np.float32)


_LARGE = 20.0  # px, a radius at which kernels are sampled finely


@dataclass(frozen=True)
class HalfAperturePSF:
    """The point spread function of one photodiode: a smooth-edged disk times a soft half-plane.

    The disk is the Butterworth low-pass form that Abuolaim et al. 2021 fit to real DP sensors; the half-plane is a
    logistic step with a floor. Left and right steps add to one, so the two views' mean is the full aperture's PSF.

    Attributes:
        order: Butterworth order n in ``1 / (1 + (rho / r)^(2 n))``; large is a hard-edged disk.
        softness: Width of the step across the aperture, as a fraction of the radius.
        crosstalk: Share of the light of the wrong half that leaks in, in [0, 0.5]. The default gives a ``separation``
            of 0.45, as was measured of real cameras.
    """

    order: float = 8.0
    softness: float = 0.12
    crosstalk: float = 0.215

    @property
    def separation(self) -> float:
        """Distance of the centroids of the views over r, the radius of an even disk with the second moment of both.

        Halves of an even disk lie 0.85 r apart.
        """
        left, right = self.views(_LARGE)
        square = np.square(np.arange(len(left), dtype=np.float64) - len(left) // 2)
        moment = float(((left + right) / 2 * (square[:, None] + square)).sum())
        return abs(self.disparity(_LARGE)) / float(np.sqrt(2 * moment))

    def with_separation(self, separation: float) -> HalfAperturePSF:
        """The same PSF with the crosstalk at which it has this separation.

        Raises:
            SimulationError: No crosstalk does it: halves of its disk lie less far apart, or it is negative.
        """
        largest = replace(self, crosstalk=0.0).separation
        if not 0 <= separation <= largest:
            raise SimulationError(
                f"expected a separation of the views from 0 to {largest:.2f} r, got {separation:g}; take a smaller "
                "one, or a harder step between the halves"
            )
        return replace(self, crosstalk=(1 - separation / largest) / 2)

    def views(self, radius: float) -> tuple[FloatArray, FloatArray]:
        """Left and right kernels ``(k, k)``, each summing to one, for a signed CoC radius in pixels.

        The kernels mirror each other; a change of the radius's sign swaps them; radius 0 is the unit impulse. They are
        sampled through a tent filter, which keeps centroids exact: the shift between views is proportional to r.
        """
        left = _half_kernel(self, round(abs(float(radius)), 4))
        right = np.ascontiguousarray(left[:, ::-1])
        return (left, right) if radius >= 0 else (right, left)

    def disparity(self, radius: float) -> float:
        """DP disparity ``j - k`` of Eq. 1 in pixels (x in the left view minus x in the right) of a point's centroid."""
        left, right = self.views(radius)
        columns = np.arange(left.shape[1])
        return float((left.sum(0) * columns).sum() - (right.sum(0) * columns).sum())


@lru_cache(maxsize=4096)
def _half_kernel(psf: HalfAperturePSF, radius: float) -> FloatArray:
    """The kernel whose light lies at smaller x, for a radius >= 0."""
    if radius == 0:
        return np.ones((1, 1), dtype=np.float32)
    reach = radius * 10 ** (2 / (2 * psf.order))  # the disk's profile has fallen to 1 %
    samples = max(25, 2 * int(np.ceil(reach * 5)) + 1)
    fine = np.linspace(-reach, reach, samples)
    x, y = np.meshgrid(fine, fine)
    disk = 1 / (1 + (np.hypot(x, y) / radius) ** (2 * psf.order))
    step = 1 / (1 + np.exp(np.clip(x / (psf.softness * radius + 1e-6), -60, 60)))
    light = disk * (psf.crosstalk + (1 - 2 * psf.crosstalk) * step)
    half = int(np.ceil(reach))
    tent = np.maximum(0, 1 - np.abs(np.arange(-half, half + 1)[:, None] - fine[None, :]))  # (k, samples)
    kernel = tent @ light @ tent.T
    return (kernel / kernel.sum()).astype(np.float32)
