"""Hypothesis strategies for pairs of views, right and wrong ones, in every layout that NumPy knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

Layout = Callable[[np.ndarray], np.ndarray]

LAYOUTS: dict[str, Layout] = {
    "contiguous": np.ascontiguousarray,
    "by columns": np.asfortranarray,
    "every other column": lambda view: np.repeat(view, 2, axis=1)[:, ::2],
    "backwards": lambda view: view[::-1, ::-1].copy()[::-1, ::-1],
    "channels first": lambda view: np.moveaxis(np.ascontiguousarray(np.moveaxis(view, 2, 0)), 0, 2),
    "BGR reversed": lambda view: view[..., ::-1].copy()[..., ::-1],
    "read-only": lambda view: np.frombuffer(view.tobytes(), view.dtype).reshape(view.shape),
    "unaligned": lambda view: np.frombuffer(b"\0" + view.tobytes(), np.uint8)[1:].view(view.dtype).reshape(view.shape),
    "big endian": lambda view: view.astype(view.dtype.newbyteorder(">")),
    "little endian": lambda view: view.astype(view.dtype.newbyteorder("<")),
    "part of a larger one": lambda view: np.pad(view, ((3, 5), (7, 2), (0, 1)))[3:-5, 7:-2, :-1],
}
"""Name -> the same pixels in another memory layout."""


def pixels(height: int, width: int, dtype: Any, seed: int) -> np.ndarray:
    """A view ``(height, width, 3)`` of noise."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, 3), dtype, endpoint=True)


@dataclass(frozen=True)
class Pair:
    """A pair in odd layouts, and the same pixels as plain arrays."""

    left: np.ndarray
    right: np.ndarray
    plain: tuple[np.ndarray, np.ndarray]
    axis: str


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Pairs that have to be restored, 1 x 1 px and up."""
    h, w = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    seed = draw(st.integers(0, 2**32 - 1))
    plain = pixels(h, w, dtype, seed), pixels(h, w, dtype, seed + 1)
    layouts = st.sampled_from(sorted(LAYOUTS))
    left, right = (LAYOUTS[draw(layouts)](view) for view in plain)
    return Pair(left, right, plain, draw(st.sampled_from(["horizontal", "vertical"])))


WRONG: dict[str, Layout] = {
    "float in [0, 1]": lambda view: view / np.float64(255),
    "NaN": lambda view: np.full(view.shape, np.nan, np.float32),
    "infinite": lambda view: np.full(view.shape, np.inf, np.float16),
    "signed": lambda view: view.astype(np.int16),
    "32 bits": lambda view: view.astype(np.uint32),
    "Boolean": lambda view: view > 9,
    "complex": lambda view: view.astype(complex),
    "objects": lambda view: view.astype(object),
    "texts": lambda view: view.astype(str),
    "dates": lambda view: view.astype("datetime64[s]"),
    "records": lambda view: np.zeros(view.shape, [("r", "u1"), ("g", "u1")]),
    "grey": lambda view: view[..., 0],
    "with alpha": lambda view: np.concatenate([view, view[..., :1]], axis=2),
    "planes": lambda view: np.moveaxis(view, 2, 0)[None],
    "no rows": lambda view: view[:0],
    "no columns": lambda view: view[:, :0],
    "a number": lambda view: np.array(7, np.uint8),
    "a list": lambda view: view.tolist(),
    "nothing": lambda view: None,
    "another size": lambda view: np.pad(view, ((0, 1), (0, 0), (0, 0))),
    "another depth": lambda view: view.astype(np.uint16 if view.dtype == np.uint8 else np.uint8),
}
"""Name -> what is no view, or does not fit the other one."""


@st.composite
def wrong_pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """Pairs that have to be refused."""
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    view = pixels(h, w, draw(st.sampled_from([np.uint8, np.uint16])), draw(st.integers(0, 2**32 - 1)))
    spoilt = WRONG[draw(st.sampled_from(sorted(WRONG)))](view)
    return (view, spoilt) if draw(st.booleans()) else (spoilt, view)
