"""The paper's ablations at small scale, on simulated scenes and a CPU: the same steps for every row.

Table 6: the rows start from the weights of a trained checkpoint without its attention blocks, so that a short training
begins well above the center view; what a row adds, attention blocks or the blur map as a channel, is new and begins
with no effect. All are trained further alike, once per seed, on blur maps of the true disparity with errors like
CLIP's, and scored with the true map, with CLIP's, and with a blank one. Designs: narrow forms of configs, trained
from scratch for the same time. Table 5: no training, the blur maps of the checkpoint's CLIP with each prompt and
ensemble are compared with the scenes' disparity. Scores are of the split that no run trains on. The results are in
``ablations.json`` and ``ablations.md``.

A finished run is not repeated, an interrupted one resumes. Run from the repository's root:

    python -m models.recipes.ablations.run --scenes runs/scenes
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import REPORTS
from benchmarks.harness.results import save, write_text
from ldp_export.checkpoint import Checkpoint
from ldp_export.data import PairDataset, PairSample, open_dataset
from ldp_export.data.pairs import NAME as PAIRS
from ldp_export.data.simulated import NAME as SCENES
from ldp_export.simulation.samples import disparity_in_pixels, focus_setting
from ldp_export.training import train
from ldp_runtime.errors import LDPError
from models.recipes.ablations.report import make_report, markdown
from models.recipes.ablations.rows import DESIGNS, MAIN, TABLE5, TABLE6, AblationError, Options
from models.recipes.ablations.scoring import clip_estimator, clip_logits, score_maps, score_photographs, score_scenes


def run_row(options: Options, row: str, seed: int) -> dict[str, Any]:
    """Trains and scores one row with one seed, or reads the result of an earlier run.

    Raises:
        LDPError: The run's folder holds another run, or training or scoring failed.
    """
    config, folder = options.plan(row, seed), options.folder(row, seed)
    record = folder / "result.json"
    if record.is_file():
        result: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if result["config"] != config.to_dict():
            raise AblationError(f"{folder} holds a run with other settings; remove it or give another --work")
        return result
    if row in TABLE6:
        options.write_start(options.network(row).prior, seed)
    checkpoint, resumed, before = folder / "checkpoint", folder.is_dir(), time.process_time()
    train(config, folder)
    cpu = None if resumed else round(time.process_time() - before)
    network = Checkpoint.open(checkpoint).network()
    estimator = clip_estimator(Checkpoint.open(options.checkpoint), network.config.multiple)
    result = {
        "row": row,
        "seed": seed,
        "config": config.to_dict(),
        "scenes": score_scenes(network, options.scenes, estimator),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": Checkpoint.open(checkpoint).training()["deblur"]["seconds"],
        "cpu_seconds": cpu,
    }
    write_text(record, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def score_row(options: Options, row: str, seed: int, photographs: Path | None) -> dict[str, Any]:
    """The scores of a trained row on real pairs, or those of an earlier call; empty without either.

    Args:
        options: The settings.
        row: The row.
        seed: Its seed.
        photographs: A folder or a CSV of pairs with targets, see ``ldp-export evaluate --data pairs=``.

    Raises:
        LDPError: There is no such run, or the pairs cannot be read.
    """
    record = options.folder(row, seed) / "photographs.json"
    if not record.is_file():
        if photographs is None:
            return {}
        network = Checkpoint.open(options.folder(row, seed) / "checkpoint").network()
        estimator = clip_estimator(Checkpoint.open(options.checkpoint), network.config.multiple)
        scores = score_photographs(network, open_dataset(PAIRS, photographs, "test"), estimator)
        write_text(record, json.dumps(scores, indent=2, allow_nan=False) + "\n")
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def score_prompts(options: Options) -> list[dict[str, Any]]:
    """Compares the blur map of each prompt and ensemble with the disparity: held-out scenes, and the motorcycle.

    A pixel is blurred where |DP disparity| > 1 px, as in the paper. The held-out shards may be those that the prompts
    were calibrated on; the motorcycle scene is not.
    """
    checkpoint = Checkpoint.open(options.checkpoint)
    rows = []
    for label, ensemble in TABLE5.items():
        estimator = clip_estimator(checkpoint, checkpoint.config().multiple, ensemble)
        figures = {}
        sets: tuple[tuple[str, PairDataset], ...] = (
            ("scenes", open_dataset(SCENES, options.scenes, "val")),
            ("motorcycle", _Motorcycle()),
        )
        for what, dataset in sets:
            figures[what] = score_maps(dataset, clip_logits(dataset, estimator), estimator.patch)
        rows.append({"label": label, "ensemble": ensemble, **figures})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder of shards, see ldp-export data render")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("models/checkpoints/ldp-nano"), help="what rows start from, and CLIP"
    )
    parser.add_argument("--photographs", type=Path, help="folder or CSV of real pairs to score too")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[*MAIN, *DESIGNS], choices=[*TABLE6, *DESIGNS], metavar="ROW")
    parser.add_argument("--steps", type=int, default=500, help="steps of each run of Table 6")
    parser.add_argument(
        "--design-steps", type=int, nargs=2, default=[2100, 11200], help="steps of each run of the configs"
    )
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="arithmetic of the training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--no-prompts", action="store_true", help="without Table 5")
    args = parser.parse_args(argv)
    design_steps = dict(zip(DESIGNS, args.design_steps, strict=True))
    options = Options(
        args.scenes,
        args.checkpoint,
        args.work,
        args.steps,
        design_steps,
        precision=args.precision,
        threads=args.threads,
    )
    try:
        prompts = [] if args.no_prompts else score_prompts(options)
        runs = []
        for seed in args.seeds:  # seed by seed: all rows are comparable after the first
            for row in args.rows:
                runs.append(run_row(options, row, seed))
                if photographs := score_row(options, row, seed, args.photographs):
                    runs[-1] |= {"photographs": photographs}
                print(f"{row} seed {seed}: {json.dumps(runs[-1]['scenes'])}", flush=True)
            report = make_report(runs, prompts, options)
            save(report, markdown(report), args.output)
    except LDPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output / "ablations.md")
    return 0


class _Motorcycle:
    """The held-out scene in both focus settings; nothing was trained or calibrated on it. A ``PairDataset``."""

    name, split = "motorcycle", "test"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> PairSample:
        focus = ("near", "far")[index]
        pair = focus_setting(focus)
        left, right = (view.astype("uint8") for view in (pair.left, pair.right))
        return PairSample(focus, left, right, disparity=disparity_in_pixels(pair.coc).astype("float32"))

    def names(self) -> tuple[str, ...]:
        return "near", "far"

    def subsets(self) -> dict[str, frozenset[str]]:
        return {}


if __name__ == "__main__":
    sys.exit(main())
