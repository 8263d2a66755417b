"""Crops and batches: pure functions of seed, step and place in the batch, in any process.

A resumed run, and a run of several processes, therefore see the same crops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldp_export.data import PairDataset
from ldp_export.training.config import TrainingError
from ldp_runtime.errors import one_line

_ORDER, _CROP, _HELD_OUT = range(3)
"""Purpose of a random stream; part of its seed."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A training crop.

    Attributes:
        left: ``(s, s, 3)`` uint8 or uint16.
        right: The same.
        target: The same.
        logits: Blur logits ``(s / p, s / p)`` float32 of the pair.
    """

    left: NDArray[Any]
    right: NDArray[Any]
    target: NDArray[Any]
    logits: NDArray[np.float32]

    def mirrored(self) -> Crop:
        """The scene in a mirror, left and right exchanged.

        The halves of the lens swap, so the views swap, and the sign of the disparity stays correct.
        """
        return Crop(self.right[:, ::-1], self.left[:, ::-1], self.target[:, ::-1], self.logits[:, ::-1])

    def upside_down(self) -> Crop:
        """The scene upside down; the disparity, along x, stays as it is."""
        return Crop(self.left[::-1], self.right[::-1], self.target[::-1], self.logits[::-1])

    def with_channels(self, order: NDArray[np.intp]) -> Crop:
        """With R, G and B in another order."""
        return Crop(self.left[..., order], self.right[..., order], self.target[..., order], self.logits)


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a step.

    Attributes:
        pair: ``(B, 6, s, s)`` float32 in [0, 1], channels last in memory: left RGB, right RGB.
        logits: ``(B, 1, s / p, s / p)`` float32.
        target: ``(B, 3, s, s)`` float32 in [0, 1], channels last in memory.
    """

    pair: Tensor
    logits: Tensor
    target: Tensor

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; torch's loader calls this."""
        return Batch(self.pair.pin_memory(), self.logits.pin_memory(), self.target.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.pair, self.logits, self.target)))


class CropSource:
    """Crops, on the patch grid, of pairs and of the blur logits that CLIP gave for their full frames."""

    def __init__(
        self, datasets: Sequence[PairDataset], logits: Sequence[NDArray[np.float32]], patch: int, crop: int
    ) -> None:
        """Pairs are decoded when a crop is read.

        Args:
            datasets: The pairs.
            logits: Of each pair of each data set, over the pair padded bottom and right, one value per p x p px.
            patch: p, side in px of the square of one logit.
            crop: Side of a crop in px, a multiple of p.
        """
        self._places = [(dataset, i) for dataset in datasets for i in range(len(dataset))]
        self._logits, self._patch, self._crop = logits, patch, crop

    def __len__(self) -> int:
        return len(self._places)

    def crop(self, index: int, rng: np.random.Generator) -> Crop:
        """A crop of a pair, at a random place of the patch grid.

        Raises:
            TrainingError: The pair is smaller than a crop or has no target.
        """
        dataset, place = self._places[index]
        sample, z, p, s = dataset[place], self._logits[index], self._patch, self._crop
        h, w = sample.left.shape[:2]
        if sample.target is None:
            raise TrainingError(f"{dataset.name}: expected pairs with a target, got {sample.name} without; use others")
        if min(h, w) < s:
            raise TrainingError(
                f"{dataset.name}: expected pairs of at least {s} x {s} px, the crop, got {sample.name} of {h} x {w}; "
                "make `crop` smaller"
            )
        y, x = (int(rng.integers((side - s) // p + 1)) for side in (h, w))
        area = np.s_[y * p : y * p + s, x * p : x * p + s]
        tokens = np.s_[y : y + s // p, x : x + s // p]
        return Crop(sample.left[area], sample.right[area], sample.target[area], z[tokens])


class Batches(Dataset[Batch]):
    """The batches of a run, by step and part.

    Item ``step * parts + part`` is this process's part of a step. The order of the pairs is drawn for each epoch.
    """

    def __init__(
        self,
        source: CropSource,
        *,
        seed: int,
        batch: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        flip: bool = True,
        permute_channels: bool = False,
        disturb: Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]] | None = None,
    ) -> None:
        """The batches depend on nothing else.

        Args:
            source: The crops.
            seed: Seed of the run.
            batch: Crops of one step over all processes, a multiple of ``parts * world``.
            parts: Number of parts of a process's share.
            rank: Number of this process.
            world: Number of processes.
            flip: Flip at random.
            permute_channels: Permute the channels of half of the crops.
            disturb: What is done to the blur logits ``(s / p, s / p)`` of a crop; None leaves them as they are.
        """
        self._source, self._seed, self._batch = source, seed, batch
        self._parts, self._rank, self._world = parts, rank, world
        self._flip, self._permute_channels, self._disturb = flip, permute_channels, disturb

    def __getitem__(self, item: int) -> Batch:
        step, part = divmod(item, self._parts)
        size = self._batch // (self._world * self._parts)
        first = (self._rank * self._parts + part) * size
        return collate([self.crop(step, place) for place in range(first, first + size)])

    def crop(self, step: int, place: int) -> Crop:
        """The crop at one place of the batch of a step, counted from 0 over all processes."""
        number = step * self._batch + place
        epoch, position = divmod(number, len(self._source))
        rng = np.random.default_rng((self._seed, _CROP, step, place))
        crop = self._source.crop(int(_order(self._seed, epoch, len(self._source))[position]), rng)
        sideways, over, coloured = rng.random(3) < 0.5
        order = rng.permutation(3)
        if self._disturb is not None:
            crop = replace(crop, logits=self._disturb(crop.logits, rng))
        if self._flip and sideways:
            crop = crop.mirrored()
        if self._flip and over:
            crop = crop.upside_down()
        return crop.with_channels(order) if self._permute_channels and coloured else crop


def stream(batches: Batches, first: int, *, workers: int, pinned: bool) -> Iterator[Batch]:
    """The batches from item ``first`` on, without end.

    Args:
        batches: The batches.
        first: The item to begin with.
        workers: Processes that prepare them; 0 prepares them here.
        pinned: In pinned memory.
    """
    items = range(first, sys.maxsize)
    return iter(DataLoader(batches, batch_size=None, sampler=items, num_workers=workers, pin_memory=pinned))


@contextmanager
def killed_workers() -> Iterator[None]:
    """Names the cause if a process of ``stream`` is killed; torch's signal handler raises that anywhere in the block.

    Raises:
        TrainingError: A process that prepares batches was killed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in text:
            raise
        if text.startswith("Caught "):  # an error of the data set, from a worker
            raise
        raise TrainingError(
            f"a process that prepares batches was killed, perhaps for want of memory ({one_line(error)}); run the "
            "same command again, which goes on from the saved state, or set workers lower"
        ) from error


def held_out_crops(source: CropSource, count: int) -> list[Crop]:
    """The crops of validation, spread evenly over the pairs; always the same."""
    return [source.crop(i * len(source) // count, np.random.default_rng((0, _HELD_OUT, i, 0))) for i in range(count)]


def collate(crops: Sequence[Crop]) -> Batch:
    """Crops of one size as a batch."""
    views = np.stack([np.concatenate([crop.left, crop.right], axis=2) for crop in crops])
    targets = np.stack([crop.target for crop in crops])
    logits = torch.from_numpy(np.stack([crop.logits for crop in crops]))[:, None]
    return Batch(_to_unit(views), logits, _to_unit(targets))


def _to_unit(images: NDArray[Any]) -> Tensor:
    """``(B, h, w, c)`` uint8 or uint16 to ``(B, c, h, w)`` float32 in [0, 1], channels last in memory."""
    scale = 1 / np.iinfo(images.dtype).max
    return torch.from_numpy(images.astype(np.float32)).mul_(scale).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)
