"""The rendered scenes in memory, and the batches that both trainings draw from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldp_export.data.simulated import HELD_OUT_SHARDS

KEYS = ("left", "right", "target", "disparity")


def shards(folder: Path, held_out: bool) -> list[Path]:
    """The rendered shards, either the held-out ones or the rest."""
    paths = sorted(path for path in folder.glob("scenes-*.npz") if not path.name.endswith(".tmp.npz"))
    return paths[:HELD_OUT_SHARDS] if held_out else paths[HELD_OUT_SHARDS:]


def load(paths: list[Path], keys: tuple[str, ...] = KEYS) -> dict[str, np.ndarray]:
    """Reads shards as ``(n, 256, 256, ...)`` arrays by key."""
    if not paths:
        raise SystemExit("no rendered scenes found; render some with ldp-export data render")
    loaded = []
    for path in paths:
        with np.load(path) as file:
            loaded.append([file[key] for key in keys])
    return {key: np.concatenate(arrays) for key, arrays in zip(keys, zip(*loaded, strict=True), strict=True)}
