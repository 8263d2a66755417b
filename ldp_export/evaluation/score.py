"""Scores a model on data sets, image by image. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import PairDataset, PairSample, iterate
from ldp_export.data.simulated import SHARP_DISPARITY
from ldp_export.evaluation.metrics import (
    affine_invariant_mae,
    affine_invariant_rmse,
    mae,
    psnr,
    rank_disagreement,
    rmse,
    ssim,
)
from ldp_export.evaluation.photographs import (
    RegisteredTarget,
    aligned_psnr,
    is_grey,
    matched_psnr,
    register_target,
    sharpness,
    unit_range,
)
from ldp_export.evaluation.report import EQUAL_PSNR, GAINS, Report, Score
from ldp_export.evaluation.sheets import ROWS_A_SHEET, contact_row, stack
from ldp_runtime.errors import LDPError
from ldp_runtime.images.quality import SSIM_WINDOW, center_view
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import LOGIT_LIMIT


class Restorer(Protocol):
    """What is scored: ``ldp_runtime.Deblurrer`` or ``ldp_export.evaluation.reference.TorchDeblurrer``."""

    @property
    def backend(self) -> str:
        """What runs it."""

    @property
    def precision(self) -> str:
        """Its arithmetic."""

    def __call__(self, left: NDArray[Any], right: NDArray[Any]) -> Result:
        """Restores a pair ``(h, w, 3)`` whose disparity runs along x."""


def score_pair(restorer: Restorer, sample: PairSample, *, photographs: bool = False) -> tuple[Score, Result]:
    """Restores a pair and scores it.

    Args:
        restorer: What is scored.
        sample: The pair.
        photographs: Score by ``PHOTOGRAPH`` too, as real photographs want it.

    Returns:
        The scores for which the pair has a truth and the model an answer, and what the restorer made of it.
    """
    result = restorer(sample.left, sample.right)
    values: dict[str, float] = {}
    peak, registered = float(sample.peak), None
    if photographs and sample.target is not None:
        registered = registered_with(np.asarray(result.restored), sample.target, peak)
    for prefix, image in (("center_", center_view(sample.left, sample.right)), ("", result.restored)):
        scores = image_scores(np.asarray(image), sample.target, peak, photographs=photographs, registered=registered)
        values |= {f"{prefix}{name}": value for name, value in scores.items()}
    if photographs and sample.target is not None:
        for gain in GAINS:
            name = gain.removesuffix("_gain")
            after, before = (min(values[column], EQUAL_PSNR) for column in (name, f"center_{name}"))
            values[gain] = after - before
    pixels = (0, 0, 0, 0)
    if sample.disparity is not None and result.blur_map is not None:
        blurred, known = np.abs(sample.disparity) > SHARP_DISPARITY, np.isfinite(sample.disparity)
        found = result.blur_map > 0.5
        counts = (found & blurred & known, blurred & known, ~found & ~blurred & known, ~blurred & known)
        pixels = tuple(int(mask.sum()) for mask in counts)  # type: ignore[assignment]  # four of them
        if known.any():
            values["blur_map_accuracy"] = (pixels[0] + pixels[2]) / int(known.sum())
    truth = sample.relative_disparity if sample.disparity is None else np.abs(sample.disparity)
    if result.blur_map is not None and truth is not None and np.unique(truth[np.isfinite(truth)]).size > 1:
        logits = _logits(result.blur_map)
        values |= {"ai1": affine_invariant_mae(logits, truth), "ai2": affine_invariant_rmse(logits, truth)}
        if np.ptp(logits):
            values["rank_disagreement"] = rank_disagreement(logits, truth)
    return Score(sample.name, values, pixels), result


def score_dataset(
    restorer: Restorer,
    dataset: PairDataset,
    model: str,
    *,
    photographs: bool = False,
    sheet: Callable[[int, NDArray[np.uint8]], None] | None = None,
    progress: Callable[[Iterable[PairSample]], Iterator[PairSample]] = iter,
) -> Report:
    """Scores every pair of a split.

    Args:
        restorer: What is scored.
        dataset: The split.
        model: Its name, for the report.
        photographs: As for ``score_pair``.
        sheet: Takes each contact sheet, ``(h, w, 3)`` RGB, and its number from 1, as soon as it is full.
        progress: Wraps the pairs, to show how far it is.

    Raises:
        LDPError: A pair cannot be read or restored; the message names it.
    """
    scores, rows, sheets = [], [], 0
    for sample in progress(iterate(dataset)):
        try:
            score, result = score_pair(restorer, sample, photographs=photographs)
        except LDPError as error:
            raise type(error)(f"{sample.name}: {error}") from error
        scores.append(score)
        if sheet is not None:
            rows.append(contact_row(sample, result, score.values.get("center_psnr"), score.values.get("psnr")))
            if len(rows) == ROWS_A_SHEET or len(scores) == len(dataset):
                sheets += 1
                sheet(sheets, stack(rows))
                rows.clear()
    return Report(
        model, restorer.backend, restorer.precision, dataset.name, dataset.split, tuple(scores), dataset.subsets()
    )


def registered_with(restored: NDArray[Any], target: NDArray[Any], peak: float) -> RegisteredTarget:
    """``register_target`` of ``(h, w, 3)`` in [0, peak], as ``image_scores`` takes it."""
    restored, target = grey_where_target_is(restored, target)
    return register_target(unit_range(target, peak), unit_range(restored, peak))


def image_scores(
    image: NDArray[Any],
    target: NDArray[Any] | None,
    peak: float,
    *,
    photographs: bool = False,
    registered: RegisteredTarget | None = None,
) -> dict[str, float]:
    """The scores of an image: ``RESTORATION`` where there is a target, and ``PHOTOGRAPH`` where that is wanted.

    Args:
        image: ``(h, w, 3)`` in [0, peak], any real dtype.
        target: The same shape, or None. Photographs with a grey target are scored on the mean of their channels.
        peak: The largest value.
        photographs: As for ``score_pair``.
        registered: The target of the registered PSNR.
    """
    scores: dict[str, float] = {}
    if target is not None:
        if photographs:
            image, target = grey_where_target_is(image, target)
        scores |= {
            "psnr": psnr(image, target, data_range=peak),
            "mae": mae(image, target, data_range=peak),
            "mse_rel": rmse(image, target, data_range=peak),
        }
        if min(target.shape[:2]) >= SSIM_WINDOW:
            scores["ssim"] = ssim(image, target, data_range=peak)
    if photographs:
        picture = unit_range(image, peak)
        if target is not None:
            truth = unit_range(target, peak)
            scores |= {"matched_psnr": matched_psnr(picture, truth), "aligned_psnr": aligned_psnr(picture, truth)}
        if registered is not None:
            scores["registered_psnr"] = registered.psnr(picture)
        scores["sharpness"] = sharpness(picture)
    return scores


def grey_where_target_is(image: NDArray[Any], target: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """An image and its target ``(h, w, 3)``; where the target is grey the mean of the channels, ``(h, w, 1)``."""
    return (image.mean(2, keepdims=True), target[..., :1]) if is_grey(target) else (image, target)


def _logits(blur_map: NDArray[np.float32]) -> NDArray[np.float64]:
    """The unnormalised blur map of a map in [0, 1], clipped as the network's logits are."""
    limit = 1 / (1 + math.exp(-LOGIT_LIMIT))
    probability = np.clip(blur_map.astype(np.float64), 1 - limit, limit)
    return np.log(probability) - np.log1p(-probability)
