"""What a ``Deblurrer`` returns."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.stages.pixels import Image


class BlurMapResult:
    """What ``Deblurrer.blur_map`` returns.

    Attributes:
        blur_logits: ``(H / p, W / p)`` float32 in [-10, 10], over the padded pair; p is CLIP's patch. Where the
            bundle's blur map comes from patches of the image, one value a patch.
        timings: Seconds by stage: ``open`` (near zero once the graphs are open), ``prepare``, ``clip``,
            ``blur_logits``, ``finish``. On a GPU these are times of the device, ``upload`` and ``download`` too.
        backend: Name of the backend that ran the graphs.
        precision: Precision that they ran in.
        notes: What to know of how the result was made, such as that memory ran out; sentences for people.
    """

    def __init__(
        self,
        blur_map: NDArray[np.float32] | Callable[[], NDArray[np.float32]],
        blur_logits: NDArray[np.float32],
        timings: dict[str, float],
        backend: str,
        precision: str,
        *,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Takes the attributes; ``blur_map`` is the map or what makes it when it is first asked for."""
        self._blur_map = blur_map
        self.blur_logits = blur_logits
        self.timings = timings
        self.backend = backend
        self.precision = precision
        self.notes = notes

    @functools.cached_property
    def blur_map(self) -> NDArray[np.float32]:
        """``(h, w)`` float32 in [0, 1], larger where it is more blurred."""
        return self._blur_map() if callable(self._blur_map) else self._blur_map


class Result(BlurMapResult):
    """What a ``Deblurrer`` returns; ``timings`` also has ``deblur``.

    Attributes:
        restored: ``(h, w, 3)`` RGB, all in focus, in the dtype of the input.
        tiles: How many tiles it was restored in; 1 is one piece.
    """

    def __init__(
        self,
        blur_map: NDArray[np.float32] | Callable[[], NDArray[np.float32]],
        blur_logits: NDArray[np.float32],
        timings: dict[str, float],
        backend: str,
        precision: str,
        restored: Image,
        *,
        notes: tuple[str, ...] = (),
        tiles: int = 1,
    ) -> None:
        """Takes the attributes, and ``blur_map`` as ``BlurMapResult`` does."""
        super().__init__(blur_map, blur_logits, timings, backend, precision, notes=notes)
        self.restored = restored
        self.tiles = tiles
