"""Views in every memory layout that NumPy knows, and arrays that are no views."""

from collections.abc import Callable
from typing import Any

import numpy as np

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
"""Name -> an array that is no view, or that does not fit the other one."""
