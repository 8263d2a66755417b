"""The held-out sample: DP pairs of the Middlebury motorcycle scene, which no training ever saw.

The all-in-focus image is the left view of scikit-image's ``stereo_motorcycle``; its disparity map, holes filled, gives
the circles of confusion. Two focus settings, each in several variants; seeds are fixed, so pairs are always the same.
Rendering the variant ``rays`` takes half a minute and is kept in LDP's cache folder, under a key made of the image, the
parameters and the source of both simulators: a change of any renders it anew.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from ldp_export.simulation import rays as simulate_rays
from ldp_export.simulation import simulate
from ldp_export.simulation.maps import fill_disparity_holes
from ldp_export.simulation.optics import FloatArray, HalfAperturePSF, coc_from_disparity
from ldp_export.simulation.simulate import NOISE_FREE, SensorNoise, SimulatedPair, simulate_pair
from ldp_runtime.cache import cache_folder
from ldp_runtime.files import write_files

Pixels = NDArray[np.uint8]
View = NDArray[np.uint8] | NDArray[np.uint16]

VARIANTS = ("standard", "noise_free", "rays", "mild", "noise3", "jpeg90", "in_focus")
"""``standard`` is the sample; ``rays`` comes from ``simulation.rays``; ``mild`` is hardly blurred; ``noise3`` and
``jpeg90`` are ``mild`` with noise of 3/255 in each view, and with JPEG compression of quality 90; ``in_focus`` has no
blur at all, its views differ by the sensor's noise alone."""


_NOISE = SensorNoise(shot=5e-5, read=5e-4)
_PSF = HalfAperturePSF()


@dataclass(frozen=True)
class Motorcycle:
    """The parameters of the sample.

    Attributes:
        focus: Names of the focus settings.
        percentiles: For each, the percentile of the disparity that is in focus.
        psf: Of a photodiode.
        max_radius: Largest radius of a circle of confusion, in px.
        mild_radius: The same of the variant ``mild``.
        noise: Of the sensor, in linear light.
        late_noise: Standard deviation of the noise of ``noise3``, in 8-bit sRGB steps.
        jpeg_quality: Of ``jpeg90``.
        seed: Of the noise; a second focus setting takes the next number.
    """

    focus: tuple[str, ...] = ("near", "far")
    percentiles: tuple[float, ...] = (80.0, 30.0)
    psf: HalfAperturePSF = _PSF
    max_radius: float = 6.0
    mild_radius: float = 0.7
    noise: SensorNoise = _NOISE
    late_noise: float = 3.0
    jpeg_quality: int = 90
    seed: int = 7


MOTORCYCLE = Motorcycle()


@lru_cache(maxsize=1)
def motorcycle() -> tuple[Pixels, FloatArray]:
    """The all-in-focus image ``(500, 741, 3)`` and its disparity map ``(500, 741)`` in px, holes filled."""
    left, _, disparity = data.stereo_motorcycle()
    return left, fill_disparity_holes(disparity)


@lru_cache(maxsize=4)
def focus_setting(focus: str, variant: str = "standard") -> SimulatedPair:
    """A pair of the sample, 8 bit.

    Args:
        focus: A name of ``MOTORCYCLE.focus``: "near" or "far".
        variant: A name of ``VARIANTS``.

    Raises:
        ValueError: No such focus setting or variant.
    """
    if focus not in MOTORCYCLE.focus or variant not in VARIANTS:
        raise ValueError(
            f"expected a focus of {', '.join(MOTORCYCLE.focus)} and a variant of {', '.join(VARIANTS)}, "
            f"got {focus!r} and {variant!r}"
        )
    if variant == "rays":
        return _rays(focus)
    image, _ = motorcycle()
    coc = _coc(focus, MOTORCYCLE.max_radius if variant in ("standard", "noise_free") else MOTORCYCLE.mild_radius)
    if variant == "in_focus":
        coc = np.zeros_like(coc)
    noise = NOISE_FREE if variant == "noise_free" else MOTORCYCLE.noise
    pair = simulate_pair(image, coc, psf=MOTORCYCLE.psf, noise=noise, seed=_seed(focus))
    if variant == "noise3":
        rng = np.random.default_rng(_seed(focus))
        return replace(pair, left=_add_noise(pair.left, rng), right=_add_noise(pair.right, rng))
    if variant == "jpeg90":
        return replace(pair, left=_compress(pair.left), right=_compress(pair.right))
    return pair


def disparity_in_pixels(coc: FloatArray) -> FloatArray:
    """Size of the DP disparity ``(h, w)`` in px that the sample's PSF gives to signed CoC radii ``(h, w)`` in px."""
    return (np.abs(coc) * np.float32(abs(MOTORCYCLE.psf.disparity(1.0)))).astype(np.float32)


def must_render(focus: str, variant: str) -> bool:
    """Whether ``focus_setting`` will take long: the variant ``rays``, and it is not in the cache."""
    if variant != "rays":
        return False
    path = _rays_file(focus)
    return path is None or not path.is_file()


def _coc(focus: str, max_radius: float) -> FloatArray:
    _, disparity = motorcycle()
    percentile = MOTORCYCLE.percentiles[MOTORCYCLE.focus.index(focus)]
    return coc_from_disparity(disparity, float(np.percentile(disparity, percentile)), max_radius)


def _seed(focus: str) -> int:
    return MOTORCYCLE.seed + MOTORCYCLE.focus.index(focus)


def _add_noise(view: View, rng: np.random.Generator) -> Pixels:
    noisy = view + MOTORCYCLE.late_noise * rng.standard_normal(view.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _compress(view: View) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=MOTORCYCLE.jpeg_quality)
    return np.asarray(Image.open(buffer))


def _rays(focus: str) -> SimulatedPair:
    path = _rays_file(focus)
    image, _ = motorcycle()
    coc = _coc(focus, MOTORCYCLE.max_radius)
    if path is not None and path.is_file():
        try:
            with np.load(path) as file:
                return SimulatedPair(file["left"], file["right"], image, coc)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)  # damaged: render it again
    pair = simulate_rays.simulate_pair_rays(image, coc, noise=MOTORCYCLE.noise, seed=_seed(focus))
    if path is not None:
        buffer = io.BytesIO()
        np.savez(buffer, left=pair.left, right=pair.right)
        write_files({path: buffer.getvalue()})
    return pair


def _rays_file(focus: str) -> Path | None:
    folder = cache_folder("samples")
    if folder is None:
        return None
    digest = hashlib.sha256(repr((MOTORCYCLE, focus)).encode())
    for array in motorcycle():
        digest.update(array.tobytes())
    for module in (simulate, simulate_rays):
        digest.update(inspect.getsource(module).encode())
    return folder / f"motorcycle-rays-{focus}-{digest.hexdigest()[:16]}.npz"
