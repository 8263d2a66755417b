"""Dual-pixel simulator: a sharp image and a depth or disparity map become a blurred DP pair.

Everything happens in linear light. A pixel of a dual-pixel sensor has two photodiodes behind one microlens; each sees
mostly one half of the lens aperture. A point out of focus therefore lands in one view as a circle of confusion (CoC)
that is brighter on its left, and in the other as one that is brighter on its right; the sides swap across the focal
plane.

Conventions used all over the project:

* the CoC radius is signed and in pixels: positive behind the focal plane (far), negative before it (near), zero in
  focus;
* behind the focal plane the left view's half lies at smaller x, so a positive radius moves content to the left in ``L``
  and to the right in ``R``;
* images are ``(h, w, 3)``, RGB, float32 in [0, 1]; "linear" means proportional to light, otherwise sRGB-encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ldp_runtime.errors import LDPError

FloatArray = NDArray[np.float32]


class SimulationError(LDPError):
    """The simulator was given something that it cannot turn into a DP pair."""


# --------------------------------------------------------------------------------------------------------------------
# Light


def srgb_to_linear(encoded: FloatArray) -> FloatArray:
    """Decodes sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1); any shape."""
    encoded = np.asarray(encoded, dtype=np.float32)
    low = encoded / np.float32(12.92)
    high = ((np.maximum(encoded, 0) + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    return np.where(encoded <= 0.04045, low, high)


def linear_to_srgb(linear: FloatArray) -> FloatArray:
    """Encodes linear light as sRGB, clamping to [0, 1] (IEC 61966-2-1); any shape."""
    linear = np.clip(np.asarray(linear, dtype=np.float32), 0, 1)
    high = np.float32(1.055) * linear ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, linear * np.float32(12.92), high)


# --------------------------------------------------------------------------------------------------------------------
# Optics


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


# --------------------------------------------------------------------------------------------------------------------
# Scenes and rendering


@dataclass(frozen=True)
class Layer:
    """One surface of a scene, known also where nearer layers hide it.

    Attributes:
        color: ``(h, w, 3)`` linear light.
        alpha: ``(h, w)`` coverage in [0, 1].
        coc: Signed CoC radius in pixels: ``(h, w)`` and smooth, or one number.
    """

    color: FloatArray
    alpha: FloatArray
    coc: FloatArray | float


def _convolve(image: FloatArray, kernel: FloatArray) -> FloatArray:
    if kernel.size == 1:
        return image
    return np.asarray(cv2.filter2D(image, -1, kernel[::-1, ::-1], borderType=cv2.BORDER_REFLECT_101), np.float32)


def _blur_layer(rgba: FloatArray, coc: FloatArray | float, psf: HalfAperturePSF, step: float) -> list[FloatArray]:
    """Left and right blurred premultiplied RGBA ``(h, w, 4)``; a varying CoC interpolates between constant ones."""
    if np.isscalar(coc) or np.ptp(coc) < 1e-3:
        radius = float(np.mean(coc))
        return [_convolve(rgba, kernel) for kernel in psf.views(radius)]
    position = np.asarray(coc, dtype=np.float32) / np.float32(step)
    low, high = int(np.floor(position.min())), int(np.ceil(position.max()))
    views = [np.zeros_like(rgba), np.zeros_like(rgba)]
    for k in range(low, high + 1):
        weight = np.maximum(0, 1 - np.abs(position - k))[..., None]
        for view, kernel in zip(views, psf.views(k * step), strict=True):
            view += weight * _convolve(rgba, kernel)
    return views


def render_views(
    layers: Sequence[Layer] | Iterator[Layer], psf: HalfAperturePSF, step: float = 0.5
) -> tuple[FloatArray, FloatArray]:
    """Composites layers, far to near, into noise-free left and right views ``(h, w, 3)`` in linear light.

    Each layer's premultiplied colour and coverage are blurred by the half-aperture PSF of its CoC and laid over what
    is behind. The farthest layer counts as covering the frame, whatever its alpha.

    Raises:
        SimulationError: There is no layer.
    """
    views: list[FloatArray] = []
    for layer in layers:
        if not views:
            if float(layer.alpha.min()) < 1:
                layer = Layer(layer.color, np.ones_like(layer.alpha), layer.coc)
            views = [blurred[..., :3] for blurred in _blur_layer(_premultiplied(layer), layer.coc, psf, step)]
            continue
        blurred_views = _blur_layer(_premultiplied(layer), layer.coc, psf, step)
        for i, blurred in enumerate(blurred_views):
            views[i] = blurred[..., :3] + (1 - blurred[..., 3:]) * views[i]
    if not views:
        raise SimulationError("a scene needs at least one layer")
    return views[0], views[1]


RADIUS_STEP = 0.25
"""Distance in pixels of the radii that ``render_image`` renders; between them the views are interpolated."""

SAME_SURFACE = 1.0
"""Radii that differ by no more, in pixels, belong to one surface for ``render_image``."""


def render_image(
    image: FloatArray,
    coc: FloatArray,
    psf: HalfAperturePSF,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> tuple[FloatArray, FloatArray]:
    """Renders an image with a CoC map into noise-free left and right views ``(h, w, 3)`` in linear light.

    At each pixel three things lie over each other: the light of *nearer* surfaces (radius smaller by more
    than ``SAME_SURFACE``) that spreads over it; its own surface, blurred with its own PSF; and past its own
    surface's edge, what lies behind. What is hidden in the image is continued from the nearest pixel that shows it. No
    light of a nearer surface gets into what lies behind it, however the surfaces slant.

    Args:
        image: ``(h, w, 3)`` linear light, all in focus.
        coc: Signed CoC radius ``(h, w)`` in pixels.
        psf: PSF of a photodiode.
        progress: Wraps the levels of depth, far to near, to show how far the rendering is.
    """
    position = coc / np.float32(RADIUS_STEP)
    count = range(int(np.floor(position.min())), int(np.ceil(position.max())) + 1)  # near to far
    levels = [k for k in count if (np.abs(position - k) < 1).any()]
    light = np.dstack([image, np.ones_like(coc)]).astype(np.float32)

    in_front = [np.zeros_like(light), np.zeros_like(light)]
    nearer_light = [np.zeros_like(light), np.zeros_like(light)]
    spread = 0  # how many levels nearer_light holds
    for k in levels:
        while levels[spread] * RADIUS_STEP < k * RADIUS_STEP - SAME_SURFACE:
            part = light * _near_level(position, levels[spread])
            for view, kernel in zip(nearer_light, psf.views(levels[spread] * RADIUS_STEP), strict=True):
                view += _convolve(part, kernel)
            spread += 1
        if spread:
            for view, spread_light in zip(in_front, nearer_light, strict=True):
                view += _near_level(position, k) * spread_light

    views = [np.zeros(image.shape, dtype=np.float32) for _ in range(2)]  # own surface over what is behind
    for k in progress(levels[::-1]):
        radius = k * RADIUS_STEP
        farther, nearer = coc > radius + SAME_SURFACE, coc < radius - SAME_SURFACE
        color = image[_nearest(~(farther | nearer))] if nearer.any() else image
        surface = np.dstack([color, np.ones_like(coc)]) * ~farther[..., None]
        shown_behind = _nearest(farther) if farther.any() else None
        for view, kernel in zip(views, psf.views(radius), strict=True):
            blurred = _convolve(surface.astype(np.float32), kernel)
            own = blurred[..., :3]
            if shown_behind is not None:  # the views are complete there
                own = own + (1 - blurred[..., 3:]) * view[shown_behind]
            view += _near_level(position, k) * own

    for view, front in zip(views, in_front, strict=True):
        coverage = front[..., 3:]
        view *= 1 - np.minimum(coverage, 1)
        view += front[..., :3] / np.maximum(coverage, 1)
    return views[0], views[1]


def _near_level(position: FloatArray, level: int) -> FloatArray:
    """Linear weights ``(h, w, 1)`` of one level; over all levels they add to one."""
    return np.maximum(0, 1 - np.abs(position - level))[..., None]


def _nearest(known: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Row and column ``(h, w)`` of the nearest known pixel of each pixel; a known one's own."""
    rows, columns = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return rows, columns


def _premultiplied(layer: Layer) -> FloatArray:
    alpha = layer.alpha[..., None]
    return np.concatenate([layer.color * alpha, alpha], axis=-1).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------------
# Sensor


@dataclass(frozen=True)
class SensorNoise:
    """Signal-dependent Gaussian noise in linear light: variance ``shot * signal + read^2``.

    ``NOISE_FREE`` has both at zero. At full scale 1, ``shot = 1e-4, read = 1e-3`` looks like a camera at base ISO.
    """

    shot: float = 0.0
    read: float = 0.0

    def add(self, linear: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Adds noise to linear light of any shape; values may leave [0, 1] and are clipped on encoding."""
        if self.shot == 0 and self.read == 0:
            return linear
        sigma = np.sqrt(np.maximum(linear, 0) * np.float32(self.shot) + np.float32(self.read) ** 2)
        return linear + sigma * rng.standard_normal(linear.shape, dtype=np.float32)


NOISE_FREE = SensorNoise()


def quantise(encoded: FloatArray, bits: int = 8) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Rounds sRGB values in [0, 1] half to even to 8 or 16 bits, clamping what lies outside."""
    if bits not in (8, 16):
        raise SimulationError(f"bits must be 8 or 16, got {bits}")
    steps = np.rint(np.clip(encoded, 0, 1) * ((1 << bits) - 1))
    return steps.astype(np.uint8) if bits == 8 else steps.astype(np.uint16)


@dataclass(frozen=True)
class SimulatedPair:
    """A simulated DP pair. Images ``(h, w, 3)``, uint8 or uint16, sRGB; ``coc`` ``(h, w)`` float32, signed, px."""

    left: NDArray[np.uint8] | NDArray[np.uint16]
    right: NDArray[np.uint8] | NDArray[np.uint16]
    target: NDArray[np.uint8] | NDArray[np.uint16]
    coc: FloatArray


def simulate_pair(
    image: NDArray[np.uint8] | NDArray[np.uint16],
    coc: FloatArray,
    *,
    psf: HalfAperturePSF | None = None,
    noise: SensorNoise = NOISE_FREE,
    seed: int = 0,
    bits: int = 8,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> SimulatedPair:
    """Simulates the DP pair that a camera would take of a scene.

    Args:
        image: All-in-focus image ``(h, w, 3)``, sRGB, uint8 or uint16.
        coc: Signed CoC radius ``(h, w)`` in pixels.
        psf: Half-aperture PSF; the default has a mildly soft edge.
        noise: Sensor noise, drawn independently for each view.
        seed: Seed of the noise.
        bits: 8 or 16, of the views and the target.
        progress: As in ``render_image``.

    Raises:
        SimulationError: Shapes or types do not fit.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.uint16):
        raise SimulationError(f"the image must be (h, w, 3) uint8 or uint16, got {image.shape} {image.dtype}")
    if coc.shape != image.shape[:2]:
        raise SimulationError(
            f"the depth or disparity map must have the image's size {image.shape[:2]}, got {coc.shape}"
        )
    if not np.isfinite(coc).all():
        raise SimulationError("the CoC map has NaN or infinite values; fill the holes of the depth map first")
    encoded = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    views = render_image(srgb_to_linear(encoded), coc.astype(np.float32), psf or HalfAperturePSF(), progress)
    rng = np.random.default_rng(seed)
    left, right = (quantise(linear_to_srgb(noise.add(view, rng)), bits) for view in views)
    return SimulatedPair(left, right, quantise(encoded, bits), coc.astype(np.float32))


def fill_disparity_holes(disparity: FloatArray) -> FloatArray:
    """Fills NaN, infinite and non-positive entries of a disparity map ``(h, w)`` from the farther valid neighbour.

    Holes of a stereo disparity map are what only one camera saw, which lies behind the surface beside it: each hole
    takes the smaller of the nearest valid values to its left and right, or the nearest valid value of the map.
    """
    disparity = np.asarray(disparity, dtype=np.float32)
    valid = np.isfinite(disparity) & (disparity > 0)
    if not valid.any():
        raise SimulationError("the disparity map has no valid (finite, positive) value")
    height, width = disparity.shape
    columns = np.broadcast_to(np.arange(width), (height, width))
    before = np.maximum.accumulate(np.where(valid, columns, -1), axis=1)
    after = np.minimum.accumulate(np.where(valid, columns, width)[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(height)[:, None]
    padded = np.pad(np.where(valid, disparity, np.inf), ((0, 0), (1, 1)), constant_values=np.inf)
    filled = np.minimum(padded[rows, before + 1], padded[rows, after + 1])
    empty = ~np.isfinite(filled)
    if empty.any():
        nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
        filled = filled[tuple(nearest)]
    return filled.astype(np.float32)
