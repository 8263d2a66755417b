"""Features to blur logits, and blur logits to the blur map: the paper's Eq. 4 to 6 and ensembles, in FP32.

The formats of Tables 4 and 5: the blur-aware prompts query the features of the center view, the DP-aware
prompts those of the stereo canvas after ``alpha``. The reference for the CUDA kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLUR_AWARE = "blur-aware"
DP_AWARE = "dp-aware"
FORMATS = (BLUR_AWARE, DP_AWARE)

ENSEMBLES: dict[str, tuple[str, ...]] = {
    "ens2": FORMATS,
    BLUR_AWARE: (BLUR_AWARE,),
    DP_AWARE: (DP_AWARE,),
    "ens1-blur-aware": (BLUR_AWARE,),
    "ens1-dp-aware": (DP_AWARE,),
}
"""Name of an ensemble -> the formats whose prompts take part (Table 5; its Ens.1 is one format by itself)."""

CANVASES = {"stereo": DP_AWARE, "center": BLUR_AWARE}
"""What CLIP may see of a window -> the format of the prompts that query its features; in the order of the CLIP graph's
inputs, whose outputs have the same names with ``_features`` behind."""

LOGIT_SCALE = np.float32(100.0)
LOGIT_LIMIT = np.float32(10.0)


class PromptLike(Protocol):
    """What the equations need of a prompt; ``bundle.Prompt`` has it."""

    @property
    def format(self) -> str:
        """One of ``FORMATS``."""

    @property
    def offset(self) -> float:
        """Subtracted from ``100 cos``."""

    @property
    def temperature(self) -> float:
        """Divided by; not zero."""


def alpha(features: ArrayLike) -> NDArray[np.float32]:
    """Folds the features of a stereo canvas onto the left view's grid (Eq. 5, 0-based).

    ``alpha(F)[i, j] = (F[i, j] + F[i, ws - 1 - j]) / 2`` for ``j < ws / 2``: the canvas is the left view
    beside the flipped right view, so token ``ws - 1 - j`` sees the same place as token ``j``.

    Args:
        features: ``(..., hs, ws, c)``, any float dtype, ``ws`` even.

    Returns:
        ``(..., hs, ws / 2, c)`` float32.

    Raises:
        ValueError: ``ws`` is odd, so that the canvas has no middle between tokens.
    """
    folded = np.asarray(features, dtype=np.float32)
    ws = folded.shape[-2]
    if ws % 2:
        raise ValueError(f"expected an even number of token columns in a stereo canvas, got {ws}")
    half = ws // 2
    return (folded[..., :half, :] + folded[..., : half - 1 : -1, :]) * np.float32(0.5)


def prompt_logits(
    features: ArrayLike, text_embeddings: ArrayLike, offsets: ArrayLike, temperatures: ArrayLike
) -> NDArray[np.float32]:
    """The logits of every prompt at every token, ``z = (100 cos(f, t) - offset) / temperature`` (Eq. 4).

    ``sigmoid(z)`` is the paper's ``sigma(sim(f, t))``. For a DP-aware prompt it maps the *sharp* regions: the
    change of sign of Eq. 6 is ``blur_logits``'s.

    Args:
        features: ``(..., c)``, any float dtype; they are normalised here.
        text_embeddings: ``(k, c)``; they are normalised here.
        offsets: ``(k,)``, in units of ``100 cos``.
        temperatures: ``(k,)``, not zero; negative where a higher similarity means sharper.

    Returns:
        ``(k, ...)`` float32.
    """
    cosine = _unit(features) @ _unit(text_embeddings).T  # (..., k)
    z: NDArray[np.float32] = LOGIT_SCALE * cosine - np.asarray(offsets, np.float32)
    z /= np.asarray(temperatures, np.float32)
    return np.moveaxis(z, -1, 0)


def ensemble_logits(z: ArrayLike) -> NDArray[np.float32]:
    """The logits of the mean of the probabilities ``sigmoid(z_k)``, clipped to +-10.

    Computed as ``log sum sigmoid(z_k) - log sum sigmoid(-z_k)``, which subtracts no probability from one.

    Args:
        z: ``(k, ...)``, one layer per prompt, larger where it is more blurred.

    Returns:
        ``(...)`` float32 in [-10, 10].
    """
    z = np.asarray(z, dtype=np.float32)
    zero = np.float32(0)
    log_blurred = np.logaddexp.reduce(-np.logaddexp(zero, -z), axis=0)
    log_sharp = np.logaddexp.reduce(-np.logaddexp(zero, z), axis=0)
    logits: NDArray[np.float32] = np.clip(log_blurred - log_sharp, -LOGIT_LIMIT, LOGIT_LIMIT)
    return logits


def select_prompts(prompts: Sequence[PromptLike], ensemble: str | int = "ens2") -> list[int]:
    """Which prompts take part.

    Args:
        prompts: The prompts of the bundle.
        ensemble: A name of ``ENSEMBLES``, or the index of a single prompt.

    Returns:
        Indices into ``prompts``, rising.

    Raises:
        ValueError: No such ensemble or prompt.
    """
    if isinstance(ensemble, int):
        if not 0 <= ensemble < len(prompts):
            raise ValueError(f"expected a prompt from 0 to {len(prompts) - 1}, got {ensemble}")
        return [ensemble]
    if ensemble not in ENSEMBLES:
        raise ValueError(f"expected one of {', '.join(ENSEMBLES)} or a prompt's index, got {ensemble!r}")
    return [k for k, prompt in enumerate(prompts) if prompt.format in ENSEMBLES[ensemble]]


def select_canvases(prompts: Sequence[PromptLike], ensemble: str | int = "ens2") -> tuple[str, ...]:
    """What CLIP has to see for the prompts that take part, names of ``CANVASES``; arguments as for ``select_prompts``.

    Raises:
        ValueError: No such ensemble or prompt.
    """
    formats = {prompts[k].format for k in select_prompts(prompts, ensemble)}
    return tuple(name for name, read_by in CANVASES.items() if read_by in formats)


def blur_logits(
    stereo_features: ArrayLike | None,
    center_features: ArrayLike | None,
    text_embeddings: ArrayLike,
    prompts: Sequence[PromptLike],
    ensemble: str | int = "ens2",
) -> NDArray[np.float32]:
    """The blur logits of each window from CLIP's features (Eq. 4 to 6, ensembles of Table 5).

    Args:
        stereo_features: ``(B, g, 2g, c)``, features of the stereo canvas, any float dtype; None where no DP-aware
            prompt takes part.
        center_features: ``(B, g, g, c)``, features of the center view; None where no blur-aware prompt takes part.
        text_embeddings: ``(k, c)``, one row per prompt.
        prompts: The ``k`` prompts with their format, offset and temperature.
        ensemble: A name of ``ENSEMBLES``, or the index of a single prompt.

    Returns:
        ``(B, g, g)`` float32 in [-10, 10], larger where it is more blurred.

    Raises:
        ValueError: No such ensemble or prompt, or features that it needs are None.
    """
    embeddings = np.asarray(text_embeddings, dtype=np.float32)
    chosen = select_prompts(prompts, ensemble)
    z: list[NDArray[np.float32]] = []
    features = {BLUR_AWARE: center_features, DP_AWARE: stereo_features}
    for name in FORMATS:
        rows = [k for k in chosen if prompts[k].format == name]
        if not rows:
            continue
        seen = features[name]
        if seen is None:
            raise ValueError(f"expected the features that {name} prompts query, got None; give them")
        offsets = [prompts[k].offset for k in rows]
        temperatures = [prompts[k].temperature for k in rows]
        if name == DP_AWARE:  # Eq. 6: M = 1 - sigma, so z changes sign
            z.append(-prompt_logits(alpha(seen), embeddings[rows], offsets, temperatures))
        else:
            z.append(prompt_logits(seen, embeddings[rows], offsets, temperatures))
    return ensemble_logits(np.concatenate(z))


def sigmoid(z: ArrayLike) -> NDArray[np.float32]:
    """``1 / (1 + exp(-z))`` in FP32, without overflow."""
    z = np.asarray(z, dtype=np.float32)
    small = np.exp(-np.abs(z))  # in (0, 1]
    probability: NDArray[np.float32] = np.where(z >= 0, np.float32(1), small) / (np.float32(1) + small)
    return probability


def upsample_map(logits: ArrayLike, size: tuple[int, int], patch: int) -> NDArray[np.float32]:
    """The blur map for people: ``sigmoid(logits)`` upsampled bilinearly, half-pixel centres, edges repeated.

    Args:
        logits: ``(H / patch, W / patch)``, over the padded pair.
        size: ``(h, w)`` of the image without its padding, in px.
        patch: Side of a patch in px.

    Returns:
        ``(h, w)`` float32 in [0, 1], larger where it is more blurred; a view where there is padding.
    """
    import cv2  # it takes a while to load

    probability = sigmoid(logits)
    (h, w), (rows, columns) = size, probability.shape
    whole: NDArray[Any] = cv2.resize(probability, (columns * patch, rows * patch), interpolation=cv2.INTER_LINEAR)
    cv2.threshold(whole, 1, 1, cv2.THRESH_TRUNC, dst=whole)  # the two weights of a px may add up to a little more
    return whole[:h, :w]


def _unit(vectors: ArrayLike) -> NDArray[np.float32]:
    """``(..., c)`` scaled to length one, in FP32; a zero vector stays zero, so that its cosine is zero."""
    x = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = x / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
