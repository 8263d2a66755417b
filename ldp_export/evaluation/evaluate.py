"""Scores a bundle on the held-out motorcycle sample and compares the figures with what is wanted. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from scipy import ndimage

from ldp_export.data.simulated import SHARP_DISPARITY
from ldp_export.evaluation.metrics import accuracy, balanced_accuracy, masked_psnr, psnr, spearman, ssim
from ldp_export.evaluation.score import Restorer
from ldp_export.simulation.samples import MOTORCYCLE, VARIANTS, disparity_in_pixels, focus_setting, must_render
from ldp_runtime.bundle.bundle import read_manifest, write_manifest
from ldp_runtime.errors import BundleError
from ldp_runtime.files import cannot_write, locked_folder, write_files
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo
from ldp_runtime.images.quality import center_view
from ldp_runtime.images.visualize import colour_blur_map, comparison

if TYPE_CHECKING:
    from ldp_export.simulation.optics import FloatArray
    from ldp_export.simulation.simulate import SimulatedPair
    from ldp_runtime.result import Result

SHARP_RADIUS = 0.5
"""Below this radius of the circle of confusion in px, and nothing blurred near, a place must not lose."""

_PEAK, _TO_16_BITS = 255.0, 257
_HARDLY_BLURRED = ("mild", "noise3", "jpeg90", "in_focus")


@dataclass(frozen=True)
class Want:
    """A figure's wanted value.

    Attributes:
        label: What the figure is, for people.
        limit: The wanted value.
        at_least: The figure must be at least the limit; else at most.
    """

    label: str
    limit: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether a figure is as wanted; NaN never is."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


WANTED = {
    "gain_db": Want("gain over the center view, dB", 3.2),
    "sharp_region_change_db": Want("change of sharp regions, dB", -0.2),
    "center_as_both_costs_db": Want("the center view as both views costs, dB", 1.0),
    "swapped_costs_db": Want("swapped views cost, dB", 0.6, at_least=False),
    "noise_free_gain_db": Want("gain on a noise-free pair, dB", 3.2),
    "rays_gain_db": Want("gain under the second simulator, dB", 2.6),
    "mild_change_db": Want("change, hardly any blur, dB", -0.1),
    "noise3_change_db": Want("change, that and noise of 3/255, dB", -0.1),
    "jpeg90_change_db": Want("change, that and JPEG quality 90, dB", -0.1),
    "in_focus_change_db": Want("change, no blur at all, dB", -0.3),
    "blur_map_balanced_accuracy": Want("blur map, balanced accuracy", 0.85),
    "blur_map_spearman": Want("blur map, Spearman with |CoC|", 0.6),
}
"""What ldp-nano has to reach at each focus setting. The aims give no number for swapped views ("costs little") and for
noise-free pairs ("deblurring, not denoising"): a swap may cost 0.6 dB, and a noise-free pair must gain as much."""


REPORTED = {
    "center_psnr_db": "PSNR of the center view, dB",
    "restored_psnr_db": "PSNR of the restored image, dB",
    "center_ssim": "SSIM of the center view",
    "restored_ssim": "SSIM of the restored image",
    "sharp_share": "share of the scene that is sharp",
    "blur_map_accuracy": "blur map, accuracy",
}
"""Further figures of each focus setting, for which no value is wanted."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        figures: Focus setting -> name of ``WANTED`` or ``REPORTED`` -> figure.
        backend: Name of the backend.
        precision: Its precision.
    """

    figures: Mapping[str, Mapping[str, float]]
    backend: str
    precision: str

    @property
    def wanted(self) -> dict[str, Want]:
        """What is wanted of the figures that there are: a model without a blur map has none of it."""
        return {name: want for name, want in WANTED.items() if all(name in each for each in self.figures.values())}

    @property
    def passed(self) -> bool:
        """Whether every figure is as wanted."""
        return not self._missed()

    def _missed(self) -> list[str]:
        return [
            f"{focus} {name}"
            for focus, figures in self.figures.items()
            for name, want in self.wanted.items()
            if not want.met(figures[name])
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; figures that are not finite are null."""
        return {
            "sample": "motorcycle",
            "backend": self.backend,
            "precision": self.precision,
            "passed": self.passed,
            "figures": {
                focus: {name: _plain(value) for name, value in figures.items()}
                for focus, figures in self.figures.items()
            },
            "wanted": {name: str(want) for name, want in self.wanted.items()},
            "missed": self._missed(),
        }

    def table(self) -> str:
        """The figures for people, a line each."""
        names = list(self.figures)
        lines = [f"{'':42}" + "".join(f"{name:>18}" for name in names) + f"{'wanted':>12}"]
        for key, label in REPORTED.items():
            if any(key not in self.figures[name] for name in names):
                continue
            lines.append(f"{label:42}" + "".join(f"{_shown(self.figures[n][key], key):>13}     " for n in names))
        for key, want in self.wanted.items():
            cells = []
            for name in names:
                value = self.figures[name][key]
                cells.append(f"{_shown(value, key):>13} {'ok  ' if want.met(value) else 'MISS'}")
            lines.append(f"{want.label:42}" + "".join(cells) + f"{want!s:>12}")
        return "\n".join(lines)


def evaluate(
    deblurrer: Restorer, *, pictures: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> Evaluation:
    """Runs a bundle on the sample.

    Args:
        deblurrer: The bundle on a backend.
        pictures: A folder, which exists, for the images behind the figures; None writes none.
        report: Takes what is going on, a line at a time.

    Raises:
        LDPError: The backend fails, or the pictures cannot be written.
    """
    figures = {focus: _evaluate_focus(deblurrer, focus, pictures, report) for focus in MOTORCYCLE.focus}
    return Evaluation(figures, deblurrer.backend, deblurrer.precision)


def store(folder: Path, evaluation: Evaluation) -> None:
    """Writes the figures into the manifest of the bundle in ``folder``.

    Raises:
        LDPError: The manifest cannot be read or written.
    """
    try:
        with locked_folder(folder):
            manifest = read_manifest(folder)
            changed = msgspec.structs.replace(manifest, evaluation=evaluation.to_json())
            write_manifest(folder, changed, extra_files=manifest.files)
    except OSError as error:
        raise BundleError(cannot_write(folder, error)) from error


def _evaluate_focus(
    deblurrer: Restorer, focus: str, pictures: Path | None, report: Callable[[str], None]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for variant in VARIANTS:
        if must_render(focus, variant):
            report(f"{focus}, {variant}: rendering, half a minute; it is kept for the next time")
        else:
            report(f"{focus}, {variant}")
        pair = focus_setting(focus, variant)
        result, restored = (_restored_in_16_bits if variant in _HARDLY_BLURRED else _restored)(deblurrer, pair)
        center = center_view(pair.left, pair.right)
        before, after = (psnr(image, pair.target, data_range=_PEAK) for image in (center, restored))
        change = after - before
        if variant == "standard":
            figures |= {"center_psnr_db": before, "restored_psnr_db": after, "gain_db": change}
            figures |= _standard_figures(deblurrer, pair, result, center, after)
        elif variant in _HARDLY_BLURRED:
            figures[f"{variant}_change_db"] = change
        else:
            figures[f"{variant}_gain_db"] = change
        if pictures is not None:
            middle, image = (np.rint(each).astype(np.uint8) for each in (center, restored))
            _write_pictures(pictures, f"{focus}-{variant}", pair, image, result.blur_map, middle)
    return figures


def _restored(deblurrer: Restorer, pair: SimulatedPair) -> tuple[Result, np.ndarray]:
    result = deblurrer(pair.left, pair.right)
    return result, result.restored


def _restored_in_16_bits(deblurrer: Restorer, pair: SimulatedPair) -> tuple[Result, np.ndarray]:
    """The result, and the restored image in [0, 255] in steps of 1 / 257.

    Where nothing is blurred, rounding to 8 bits costs 0.6 dB by itself, and the center view is not rounded either.
    """
    left, right = (view.astype(np.uint16) * _TO_16_BITS for view in (pair.left, pair.right))
    result = deblurrer(left, right)
    return result, np.asarray(result.restored / np.float32(_TO_16_BITS))


def _standard_figures(
    deblurrer: Restorer, pair: SimulatedPair, result: Result, center: FloatArray, restored_psnr: float
) -> dict[str, float]:
    """The figures of one focus setting that need more than a gain."""
    target = pair.target
    sharp = sharp_region(pair.coc)
    sharp_before, sharp_after = (
        masked_psnr(image, target, sharp, data_range=_PEAK) for image in (center, result.restored)
    )
    blur = {} if result.blur_map is None else blur_map_figures(result.blur_map, pair.coc)
    blur = {f"blur_map_{name}": value for name, value in blur.items()}
    middle = np.rint(center).astype(np.uint8)
    both = deblurrer(middle, middle).restored
    swapped = deblurrer(pair.right, pair.left).restored
    return {
        "center_ssim": ssim(center, target, data_range=_PEAK),
        "restored_ssim": ssim(result.restored, target, data_range=_PEAK),
        "sharp_share": float(1 - is_blurred(pair.coc).mean()),
        "sharp_region_change_db": sharp_after - sharp_before,
        "center_as_both_costs_db": restored_psnr - psnr(both, target, data_range=_PEAK),
        "swapped_costs_db": restored_psnr - psnr(swapped, target, data_range=_PEAK),
        **blur,
    }


def is_blurred(coc: FloatArray) -> np.ndarray:
    """Pixels ``(h, w)`` that count as blurred, by the paper's threshold on |DP disparity|.

    Args:
        coc: Signed radius of the circle of confusion in px ``(h, w)``.
    """
    blurred: np.ndarray = disparity_in_pixels(coc) > SHARP_DISPARITY
    return blurred


def blur_map_figures(blur_map: FloatArray, coc: FloatArray) -> dict[str, float]:
    """How well a blur map separates what is blurred from what is sharp.

    Args:
        blur_map: ``(h, w)`` in [0, 1].
        coc: Signed radius of the circle of confusion in px ``(h, w)``.

    Returns:
        ``accuracy`` and ``balanced_accuracy`` at a half, and ``spearman``, its rank correlation with |CoC|.
    """
    blurred, predicted = is_blurred(coc), blur_map > 0.5
    return {
        "accuracy": accuracy(predicted, blurred),
        "balanced_accuracy": balanced_accuracy(predicted, blurred),
        "spearman": spearman(blur_map, np.abs(coc)),
    }


def sharp_region(coc: FloatArray) -> np.ndarray:
    """Pixels ``(h, w)`` that are in focus and out of reach of any light from out-of-focus ones.

    Args:
        coc: Signed radius of the circle of confusion in px ``(h, w)``.
    """
    reach = 2 * math.ceil(float(np.abs(coc).max())) + 1
    region: np.ndarray = ndimage.minimum_filter(np.abs(coc) < SHARP_RADIUS, size=reach, mode="nearest")
    return region


def _write_pictures(
    folder: Path, name: str, pair: SimulatedPair, restored: np.ndarray, blur_map: FloatArray | None, center: np.ndarray
) -> None:
    blur = {} if blur_map is None else {"Blur map (light: blurred)": colour_blur_map(blur_map)}
    panels = {"Center view": center, "Restored": restored, **blur, "Target": pair.target}
    images = {"center": center, "restored": restored, "compare": comparison(panels)}
    paths = {what: folder / f"{name}-{what}.png" for what in images}
    write_files({paths[what]: encode_photo(paths[what], Photo(image)) for what, image in images.items()})


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _shown(value: float, name: str) -> str:
    return f"{value:.2f}" if name.endswith("_db") else f"{value:.4f}"
