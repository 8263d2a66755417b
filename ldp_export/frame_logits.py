"""Blur logits of whole frames from CLIP, computed once and kept on disk, keyed by content.

Training crops are cut from what CLIP saw of the full frame, window by window, exactly as the runtime does it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldp_export.data import PairDataset
from ldp_export.evaluation.estimators import BlurEstimator
from ldp_runtime.files import write_whole

CHUNK = 64
"""So many pairs share a file of the cache."""


def chunks(count: int) -> list[range]:
    """The indices of ``count`` pairs by the file of the cache that holds them."""
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def chunk_logits(
    dataset: PairDataset, chunk: range, estimator: BlurEstimator, cache: Path | None
) -> list[NDArray[np.float32]]:
    """Blur logits of some pairs, from the cache if it has them; if not they are computed and put there.

    Args:
        dataset: The pairs.
        chunk: Their indices.
        estimator: CLIP.
        cache: A folder, or None to keep nothing. A file that is damaged or cannot be written is done without.
    """
    digest = hashlib.sha256(estimator.key)
    for index in chunk:  # one at a time: a chunk of photographs is too large to hold
        sample = dataset[index]
        for view in (sample.left, sample.right):
            digest.update(f"{view.shape}{view.dtype}".encode())
            digest.update(np.ascontiguousarray(view).data)
    path = None if cache is None else cache / f"{digest.hexdigest()}.npz"
    if path is not None and path.is_file():
        try:
            with np.load(path) as file:
                return [file[f"{i}"] for i in range(len(chunk))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
    logits = [estimator(dataset[index]) for index in chunk]
    if path is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **{f"{i}": z for i, z in enumerate(logits)})  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            write_whole({path: buffer.getvalue()})
    return logits
