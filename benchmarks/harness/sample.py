"""The sample pair in any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import SAMPLE
from benchmarks.harness.tables import size_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def sample_pair(shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both views of the sample, ``(h, w, 3)`` uint8, extended or cut to a shape.

    Rows are reflected and columns repeated: a reflection along x would reverse the disparity.
    """
    import numpy as np

    from ldp_runtime.images.photo import read_photo
    from ldp_runtime.stages.geometry import reflect_indices

    views = []
    for name in ("left", "right"):
        pixels = read_photo(SAMPLE / f"{name}.png").pixels
        rows = reflect_indices(pixels.shape[0], max(shape[0], pixels.shape[0]))[: shape[0]]
        view = np.empty((*shape, 3), dtype=pixels.dtype)
        for x in range(0, shape[1], pixels.shape[1]):
            part = view[:, x : x + pixels.shape[1]]
            np.take(pixels[:, : part.shape[1]], rows, axis=0, out=part, mode="clip")
        views.append(view)
    return views[0], views[1]


def write_pair(folder: Path, shape: tuple[int, int]) -> None:
    """Writes ``sample_pair`` to the files of ``pair_files``."""
    from ldp_runtime.images.photo import write_pixels

    for path, view in zip(pair_files(folder, shape), sample_pair(shape), strict=True):
        write_pixels(path, view)


def pair_files(folder: Path, shape: tuple[int, int]) -> tuple[Path, Path]:
    """Where ``write_pair`` puts both views."""
    return folder / f"left-{size_text(shape)}.png", folder / f"right-{size_text(shape)}.png"
