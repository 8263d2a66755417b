"""Copies the scenes that are sharp or hardly blurred into shards of their own, for training to draw them more often."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ldp_export.data.simulated import HELD_OUT_SHARDS
from ldp_export.simulation.scenes import SCENES_A_SHARD, shard_path
from ldp_export.simulation.shards import FIELDS
from models.recipes.ldp_nano.bank import load, shards

MAX_RADIUS = 0.8


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path, help="folder of ldp-export data render; its first two shards are left out")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[np.ndarray]] = {key: [] for key in FIELDS}
    for path in shards(args.scenes, held_out=False):
        scenes = load([path], FIELDS)
        sharp = np.abs(scenes["coc"].astype(np.float32)).max((1, 2)) <= MAX_RADIUS
        for key in FIELDS:
            kept[key].append(scenes[key][sharp])
    whole = {key: np.concatenate(arrays) for key, arrays in kept.items()}
    # Data sets hold out the first shards of a folder, so those are empty of new scenes: copies of the next one.
    count = len(whole["coc"]) // SCENES_A_SHARD
    for number in range(count + HELD_OUT_SHARDS):
        start = max(0, number - HELD_OUT_SHARDS) * SCENES_A_SHARD
        part = {key: value[start : start + SCENES_A_SHARD] for key, value in whole.items()}
        np.savez(shard_path(args.out, number), **part)  # type: ignore[arg-type]
    print(f"{args.out}: {count * SCENES_A_SHARD} scenes")


if __name__ == "__main__":
    main()
