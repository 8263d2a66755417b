"""What each kernel moves a second on a device, beside a copy there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cuda import launches
from ldp_runtime.cuda.base import Device, Stream
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.preparation import Canvases, PairRegion, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.geometry import WindowGrid

CHANNELS, WINDOW, OVERLAP, PATCH = 512, 224, 0, 32
"""Those of ViT-B/32, whatever the bundle has."""

_SETS = 4  # of buffers, taken in turn: no launch finds its own in the cache
_MARGIN = 256


def measure(
    device: Device, manifest: Manifest, sizes: list[tuple[int, int]], repeats: int, copied: int
) -> dict[str, Any]:
    """Times a copy on the device and every kernel.

    Args:
        device: The device.
        manifest: Its prompts and normalisation are taken.
        sizes: ``(h, w)`` of photos in px.
        repeats: Launches of a kernel that are timed.
        copied: Bytes of the copy.

    Returns:
        ``copy_gb_s``, and ``kernels``: for each ``kernel``, ``size`` and the ``us``, ``gb_s`` and ``of_copy``.
    """
    stream = device.stream()
    copy = _copy_rate(device, stream, copied)
    rows = []
    for size in sizes:
        sets = [_calls(device, stream, manifest, size) for _ in range(_SETS)]
        for turns in zip(*(calls for calls, _ in sets), strict=True):
            first = turns[0]
            seconds = _seconds(device, stream, lambda i, turns=turns: stream.launch(turns[i % _SETS]), repeats)
            rate = first.minimum_bytes / seconds
            figures = {"us": round(seconds * 1e6, 1), "gb_s": round(rate / 1e9), "of_copy": round(rate / copy, 2)}
            rows.append({"kernel": first.kernel, "size": f"{size[0]}x{size[1]}", **figures})
    return {"copy_gb_s": round(copy / 1e9), "kernels": rows}


def _seconds(device: Device, stream: Stream, work: Callable[[int], None], repeats: int) -> float:
    first, last = device.event(), device.event()
    for i in range(_SETS):
        work(i)
    stream.record(first)
    for i in range(repeats):
        work(i)
    stream.record(last)
    last.sync()
    return last.seconds_since(first) / repeats


def _copy_rate(device: Device, stream: Stream, size: int) -> float:
    """Bytes read and written a second."""
    source, target = (device.allocate(size, stream, stream) for _ in range(2))
    return 2 * size / _seconds(device, stream, lambda i: stream.copy(target.address, source.address, size), 10)


def _calls(device: Device, stream: Stream, manifest: Manifest, size: tuple[int, int]) -> tuple[list[Launch], list[Any]]:
    """A launch of each kernel, at 8 and where that matters at 16 bits, and the memory that they work on."""
    clip = manifest.require_clip()
    h, w = size
    H, W = (-(-side // PATCH) * PATCH for side in size)
    tokens = H // PATCH, W // PATCH
    grid = WindowGrid.cover(H, W, window=WINDOW, overlap=OVERLAP, patch=PATCH)
    n, g = len(grid), WINDOW // PATCH
    embeddings = np.random.default_rng(0).normal(size=(len(manifest.prompts), CHANNELS)).astype(np.float32)
    table = PromptTable.create(embeddings, manifest.prompts, manifest.ensemble)
    sizes = {
        "left": 6 * h * w, "right": 6 * h * w, "image": 6 * h * w, "map": 4 * h * w,
        "pair": 24 * H * W, "rows": 12 * H * W, "weights": 4 * max(H, W),
        "stereo": 12 * n * WINDOW**2, "center": 6 * n * WINDOW**2,
        "stereo_features": 4 * n * g * g * CHANNELS, "center_features": 2 * n * g * g * CHANNELS,
        "logits": 4 * tokens[0] * tokens[1], "invalid": 4, "table": table.array.nbytes,
    }  # fmt: skip
    memory = {name: device.allocate(nbytes + _MARGIN, stream, stream) for name, nbytes in sizes.items()}
    at = {name: piece.address for name, piece in memory.items()}
    for piece in memory.values():
        stream.zero(piece.address, piece.size)
    staged = device.allocate_host(table.array.nbytes)
    staged.array[: table.array.nbytes] = table.array.reshape(-1).view(np.uint8)
    stream.copy(at["table"], staged.address, table.array.nbytes)
    stream.sync()
    left, right, image = (Pixels(at[name], 3 * w) for name in ("left", "right", "image"))
    region = PairRegion(at["pair"], (0, 0), (H, W))
    canvases = Canvases(at["stereo"], at["center"], np.float16, grid, PATCH, clip.mean, clip.std)
    calls = []
    for dtype in (np.uint8, np.uint16):
        calls.append(prepare(left, right, dtype, size, (H, W), pair=region, canvases=canvases))
        calls.append(launches.finish(at["pair"], (H, W), image, dtype, size, at["invalid"]))
    weights = at["weights"]
    calls.append(launches.blend(at["pair"], (H, W), weights, weights, at["rows"], (H, W), (0, 0)))
    calls.append(launches.blur_map(at["logits"], tokens, PATCH, at["map"], size))
    features = at["stereo_features"], at["center_features"], np.float16
    calls.append(launches.blur_logits(*features, table, at["table"], grid, at["logits"], tokens, at["invalid"]))
    return calls, [memory, staged]
