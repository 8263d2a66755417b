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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ldp_export.simulation.optics import FloatArray, HalfAperturePSF, SimulationError
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

# --------------------------------------------------------------------------------------------------------------------
# Rendering


def _convolve(image: FloatArray, kernel: FloatArray) -> FloatArray:
    if kernel.size == 1:
        return image
    return np.asarray(cv2.filter2D(image, -1, kernel[::-1, ::-1], borderType=cv2.BORDER_REFLECT_101), np.float32)


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
