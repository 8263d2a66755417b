"""Calibration: the offset and temperature of each prompt (Eq. 4), fitted on simulated pairs.

Cosines have baselines that differ from prompt to prompt, and a higher similarity to "A blurry image." may well mean
sharper: so the sigmoid of each prompt is a logistic regression of ``100 cos`` against how true the prompt is at a
token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from ldp_export.checkpoint import Windows
from ldp_export.clip import PROMPTS, LoadedClip
from ldp_export.data.base import PairSample
from ldp_export.data.simulated import SHARP_DISPARITY
from ldp_export.evaluation.estimators import BlurEstimator
from ldp_export.evaluation.metrics import balanced_accuracy
from ldp_export.simulation.optics import FloatArray, HalfAperturePSF
from ldp_export.simulation.simulate import SensorNoise, simulate_pair
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import ensemble_logits

SCENES = 48
"""Pairs that are simulated."""

SHARP_SOFTNESS = 0.5

RIDGE = 1e-4
_SMALLEST_SLOPE = 1e-4
_NEWTON_STEPS = 50

_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel", "page")
_SIDE = 256
_MAX_RADIUS = 6.0


class CalibrationError(LDPError):
    """There is nothing to calibrate on, or it is not what it should be."""


@dataclass(frozen=True)
class Calibration:
    """The outcome.

    Attributes:
        prompts: The prompts of Table 4 with offset and temperature.
        accuracies: Balanced accuracy over the tokens that it was fitted on, of each prompt and of the ensemble (last).
        tokens: How many tokens those were.
    """

    prompts: tuple[Prompt, ...]
    accuracies: tuple[float, ...]
    tokens: int

    def table(self) -> str:
        """The calibration for people, a line per prompt."""
        lines = [f"{'':44}{'offset':>9}{'temperature':>13}{'balanced accuracy':>19}"]
        for prompt, accuracy in zip(self.prompts, self.accuracies, strict=False):
            lines.append(f"{prompt.text:44}{prompt.offset:9.3f}{prompt.temperature:13.4f}{accuracy:19.3f}")
        lines.append(f"{f'ensemble of all, over {self.tokens} tokens':66}{self.accuracies[-1]:19.3f}")
        return "\n".join(lines)


def simulate_scenes(count: int, seed: int) -> Iterator[PairSample]:
    """Simulates pairs from photographs that come with scikit-image, with CoC maps of every kind, one in six sharp.

    Args:
        count: How many.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    psf = HalfAperturePSF()
    for index in range(count):
        photo = getattr(data, _PHOTOS[rng.integers(len(_PHOTOS))])()
        photo = np.dstack([photo] * 3) if photo.ndim == 2 else photo
        scale = rng.uniform(_SIDE / min(photo.shape[:2]), 1) if min(photo.shape[:2]) > _SIDE else 1.0
        side = min(int(_SIDE / scale), *photo.shape[:2])
        top, start = rng.integers(photo.shape[0] - side + 1), rng.integers(photo.shape[1] - side + 1)
        crop = np.ascontiguousarray(photo[top : top + side, start : start + side])
        image = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
        coarse = rng.standard_normal((4, 4)).astype(np.float32)
        field = cv2.resize(coarse, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        field = field - np.float32(rng.normal(0, 0.7))
        limit = 0.8 if rng.random() < 1 / 6 else rng.uniform(2, _MAX_RADIUS)
        coc = (field * (limit / np.abs(field).max())).astype(np.float32)
        if rng.random() < 0.5:  # surfaces with edges between them
            coc = (np.rint(coc / 2) * 2).astype(np.float32)
        noise = SensorNoise(shot=float(10 ** rng.uniform(-5.5, -4)), read=float(10 ** rng.uniform(-4, -3)))
        pair = simulate_pair(image, coc, psf=psf, noise=noise, seed=int(rng.integers(2**31)))
        disparity = coc * np.float32(psf.disparity(1.0))
        views = pair.left.astype(np.uint8), pair.right.astype(np.uint8)
        yield PairSample(f"scene-{index:02d}", *views, disparity=disparity)


def blur_of_tokens(disparity: FloatArray, patch: int) -> FloatArray:
    """How blurred each token is, in [0, 1]: the mean over its pixels, 1/2 at the paper's threshold of 1 px.

    Args:
        disparity: DP disparity in px ``(h, w)``, both multiples of the patch; NaN where there is no image.
        patch: Side of a patch in px.

    Returns:
        ``(h / patch, w / patch)`` float32, NaN where a token has pixels without an image.
    """
    blur = 1 / (1 + np.exp(-(np.abs(disparity) - SHARP_DISPARITY) / SHARP_SOFTNESS))
    rows, columns = (side // patch for side in disparity.shape)
    tokens: FloatArray = blur.reshape(rows, patch, columns, patch).mean((1, 3)).astype(np.float32)
    return tokens


def token_similarities(
    clip: LoadedClip,
    windows: Windows,
    scenes: Iterable[PairSample],
    progress: Callable[[Iterator[PairSample]], Iterator[PairSample]] = iter,
) -> tuple[FloatArray, FloatArray]:
    """What each prompt sees at each token, and the truth.

    Args:
        clip: CLIP.
        windows: The windows that it sees; a smaller scene is padded as the runtime pads, and its padding left out.
        scenes: Pairs with their disparity.
        progress: Wraps the scenes, to show how far it is.

    Returns:
        ``100 cos`` ``(n, 8)`` of the prompts of Table 4, from the input that each reads, and the blur ``(n,)`` in [0,
        1].

    Raises:
        CalibrationError: A scene has no disparity, or no token holds a whole patch of a scene.
    """
    prompts = [Prompt(prompt.text, prompt.format, 0.0, 1.0) for prompt in PROMPTS]
    estimator = BlurEstimator(clip, prompts, Windows(windows.window, 0), 1)
    patch, g = estimator.patch, windows.window // estimator.patch
    cosines, blurs = [], []
    for scene in progress(iter(scenes)):
        if scene.disparity is None:
            raise CalibrationError(f"{scene.name}: expected a scene with its disparity, got none; give others")
        h, w = scene.disparity.shape
        grid = estimator.grid(estimator.padding.padded_size(h, w))
        disparity = np.full((grid.rows.grid * patch, grid.columns.grid * patch), np.nan, np.float32)
        disparity[:h, :w] = scene.disparity
        tokens = blur_of_tokens(disparity, patch)
        blur = np.stack([tokens[y : y + g, x : x + g] for y, x in grid.origins()])
        inside = np.isfinite(blur)
        cosines.append(100 * estimator.similarities(scene).numpy()[inside])
        blurs.append(blur[inside])
    if not sum(map(len, blurs)):
        raise CalibrationError(f"expected scenes that hold a patch of {patch} x {patch} px, got none")
    return np.concatenate(cosines), np.concatenate(blurs)


def fit_logistic(x: FloatArray, truth: FloatArray) -> tuple[float, float]:
    """Logistic regression in one variable, with soft labels, by Newton's method.

    Args:
        x: ``(n,)``.
        truth: Probabilities ``(n,)`` in [0, 1].

    Returns:
        Offset and temperature: ``sigmoid((x - offset) / temperature)`` fits ``truth``. The temperature is negative
        where a larger x means less true; where x says nothing it is large and the offset makes up for it.
    """
    x, truth = np.asarray(x, np.float64), np.asarray(truth, np.float64)
    location, scale = x.mean(), max(x.std(), 1e-6)
    design = np.stack([(x - location) / scale, np.ones_like(x)], axis=1)  # (n, 2)
    weights = np.zeros(2)
    # A small ridge keeps the slope finite where the classes can be separated, or where there is only one.
    ridge = RIDGE * len(x) * np.eye(2)

    def loss(candidate: NDArray[np.float64]) -> float:
        z = design @ candidate
        return float((np.logaddexp(0, z) - truth * z).sum() + candidate @ ridge @ candidate / 2)

    current = loss(weights)
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (probability - truth) + ridge @ weights
        curvature = design.T @ (design * (probability * (1 - probability))[:, None]) + ridge
        step = np.linalg.solve(curvature, gradient)
        while (reached := loss(weights - step)) > current + 1e-12 * abs(current) and np.abs(step).max() > 1e-12:
            step = step / 2  # a full step may overshoot where the curvature is small
        weights = weights - step
        current = reached
        if np.abs(step).max() < 1e-9:
            break
    slope, intercept = (float(weight) for weight in weights)
    if abs(slope) < _SMALLEST_SLOPE:
        slope = _SMALLEST_SLOPE if slope >= 0 else -_SMALLEST_SLOPE
    temperature = scale / slope
    return float(location - intercept * temperature), float(temperature)


def calibrate(similarities: FloatArray, blur: FloatArray) -> Calibration:
    """Fits every prompt of Table 4.

    ``z = (100 cos - offset) / temperature`` becomes the logit that the *prompt* is true: blurred for blur-aware
    prompts, symmetrical and therefore sharp for DP-aware ones.

    Args:
        similarities: ``100 cos`` ``(n, 8)``.
        blur: ``(n,)`` in [0, 1].

    Raises:
        CalibrationError: All tokens are sharp, or all blurred.
    """
    is_blurred = blur > 0.5
    if is_blurred.all() or not is_blurred.any():
        raise CalibrationError("expected scenes with sharp and with blurred places, got one kind; give others")
    prompts, accuracies, votes = [], [], []
    for k, prompt in enumerate(PROMPTS):
        sign = -1 if prompt.format == "dp-aware" else 1
        offset, temperature = fit_logistic(similarities[:, k], blur if sign > 0 else 1 - blur)
        prompts.append(Prompt(prompt.text, prompt.format, offset, temperature))
        votes.append(sign * (similarities[:, k] - offset) / temperature)
        accuracies.append(balanced_accuracy(votes[-1] > 0, is_blurred))
    accuracies.append(balanced_accuracy(ensemble_logits(np.stack(votes)) > 0, is_blurred))
    return Calibration(tuple(prompts), tuple(accuracies), len(blur))
