"""Assembles ``models/checkpoints/ldp-nano`` from the runs: weights, configs, calibration, logs, provenance."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from ldp_export.data.simulated import HELD_OUT_SHARDS
from ldp_export.network import CONFIGS
from ldp_export.simulation.scenes import MAX_RADIUS, SCENES_A_SHARD, SEED, read_photo_list
from models.recipes.ldp_nano.bank import shards
from models.recipes.ldp_nano.train_clip import WINDOW

HERE = Path(__file__).parent
OVERLAP = 16


def last_records(log: Path) -> dict[str, object]:
    """The newest value of each key of a JSON-lines log."""
    merged: dict[str, object] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        merged |= json.loads(line)
    return merged


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--clip", type=Path, nargs="+", required=True, help="folders of the CLIP runs, first to last")
    parser.add_argument("--deblur", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/ldp-nano"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clip = args.clip[-1]
    for source in (clip / "clip.safetensors", clip / "calibration.json", args.deblur / "deblur.safetensors"):
        shutil.copyfile(source, args.out / source.name)
    logs = [folder / "clip.log.jsonl" for folder in args.clip]
    (args.out / "clip.log.jsonl").write_text("".join(log.read_text(encoding="utf-8") for log in logs))
    shutil.copyfile(args.deblur / "deblur.log.jsonl", args.out / "deblur.log.jsonl")
    config = json.loads((HERE / "clip.json").read_text(encoding="utf-8")) | {"window": WINDOW, "overlap": OVERLAP}
    (args.out / "clip.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "network.json").write_text(json.dumps(CONFIGS["nano"].to_dict(), indent=2) + "\n")
    training = {
        "name": "ldp-nano",
        "recipe": "models/recipes/ldp_nano",
        "blur_range": MAX_RADIUS,
        "data": {
            "kind": "simulated dual-pixel pairs only",
            "scenes": SCENES_A_SHARD * len(shards(args.scenes, held_out=False)),
            "held_out_scenes": SCENES_A_SHARD * HELD_OUT_SHARDS,
            "seed": SEED,
            "photographs": list(read_photo_list(HERE / "photos.txt")),
            "never_seen": "Middlebury motorcycle; ldp_export.simulation.rays",
        },
        "clip": {"runs": [last_records(log) for log in logs], "loss": "SigLIP over patch tokens and 16 captions"},
        "deblur": {
            "run": last_records(args.deblur / "deblur.log.jsonl"),
            "loss": "Charbonnier (Eq. 11)",
            "blur_logits": [
                "steps 0 to 4000: of the true disparity, halved, with noise, while CLIP was in training",
                "steps 4000 to 7000: of CLIP's first run",
                "steps 7000 to the end: of its second run, which the checkpoint holds",
            ],
        },
        "machine": "two cores of an x86-64 CPU with AVX512-BF16; bf16 autocast",
        "torch": torch.__version__.split("+")[0],
        "licences": {
            "weights": "Apache-2.0",
            "data": [
                "lomiri-wallpapers: CC-BY-4.0, CC-BY-SA-4.0, CC-BY-SA-3.0, CC0-1.0, by photograph",
                "mate-backgrounds: GPL-2+",
                "plasma-workspace-wallpapers: CC-BY-SA-4.0, LGPL-3.0, GPL-2+, by photograph",
                "scikit-image: CC0 and public domain",
            ],
        },
    }
    (args.out / "training.json").write_text(json.dumps(training, indent=2) + "\n")


if __name__ == "__main__":
    main()
