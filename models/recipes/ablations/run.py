"""The paper's ablations at small scale, on simulated scenes and a CPU: a narrow network, the same steps for every row.

Table 6: the five priors are trained from scratch with the Charbonnier loss, once per seed. Table 7: networks with and
without BPA, from Table 6, are tuned further with each combination of losses. Table 5: no training, the blur maps of the
committed CLIP with each prompt and ensemble are compared with the scenes' disparity. Scores are of the split that no
run trains on. The results are in ``ablations.json`` and ``ablations.md``.

A finished run is not repeated, an interrupted one resumes. Run from the repository's root:

    python -m models.recipes.ablations.run --scenes runs/scenes
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from benchmarks.harness import REPORTS
from benchmarks.harness.results import Report, save, write_text
from benchmarks.harness.tables import markdown_table
from ldp_export.checkpoint import Checkpoint
from ldp_export.clip import PROMPTS
from ldp_export.data import PairDataset, PairSample, open_dataset
from ldp_export.data.simulated import HELD_OUT_SHARDS, NAME, SHARP_DISPARITY
from ldp_export.evaluation.metrics import rank_disagreement
from ldp_export.evaluation.paper import load_table
from ldp_export.evaluation.reference import BlurEstimator, TorchDeblurrer
from ldp_export.evaluation.score import score_dataset
from ldp_export.frame_logits import chunk_logits, chunks
from ldp_export.model import model_from_checkpoint
from ldp_export.network import LDPConfig
from ldp_export.simulation.samples import disparity_in_pixels, focus_setting
from ldp_export.simulation.shards import SHARD_PATTERN
from ldp_export.training import DataConfig, StageConfig, TrainConfig, read_config, train
from ldp_export.training.losses import LossConfig
from ldp_runtime.cache import cache_folder
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import upsample_map

FOLDER = Path(__file__).parent
TABLE6 = {
    "table6-nafnet": "NAFNet",
    "table6-concat": "Concat",
    "table6-sa": "SA",
    "table6-concat-sa": "Concat + SA",
    "table6-bpa": "BPA block",
}
MAIN = ("table6-nafnet", "table6-concat", "table6-bpa")
"""The main comparison: no prior, the blur map as a channel, the block."""

TABLE7 = {
    "table7-nafnet-char": ("no", "char"),
    "table7-nafnet-total": ("no", "total"),
    "table7-bpa-char": ("yes", "char"),
    "table7-bpa-char-bwl": ("yes", "char + bwl"),
    "table7-bpa-char-bal": ("yes", "char + bal"),
    "table7-bpa-total": ("yes", "total"),
}
"""Row of an ablation -> its labels in the paper's table."""

TABLE5 = {
    **{f"{prompt.format} p{k % 4 + 1}": k for k, prompt in enumerate(PROMPTS)},
    "blur-aware Ens.1": "ens1-blur-aware",
    "dp-aware Ens.1": "ens1-dp-aware",
    "Ens.2": "ens2",
}

NETWORK = LDPConfig(
    "ablation",
    width=16,
    stem=2,
    encoder=(1, 1, 1),
    middle=1,
    decoder=(1, 1, 1),
    bpa=("middle", "decoder"),
    head_dim=16,
    window=8,
    kernel_hidden=16,
)
CROP, BATCH = 128, 8

Floats = NDArray[np.float64]


class AblationError(LDPError):
    """The ablation cannot run with these options."""


@dataclass(frozen=True)
class Options:
    """Settings of all runs.

    Attributes:
        scenes: Folder of shards; its first shards are held out.
        checkpoint: CLIP and its calibration.
        work: Folder of the runs.
        steps: Steps of each run of Table 6.
        tuning_steps: Steps of each run of Table 7.
        network: The network; ``prior`` is the row's.
        crop: Side of the crops in px.
        batch: Crops per step.
        threads: CPU threads.
    """

    scenes: Path
    checkpoint: Path
    work: Path
    steps: int
    tuning_steps: int
    network: LDPConfig = NETWORK
    crop: int = CROP
    batch: int = BATCH
    threads: int = 1

    def plan(self, row: str, seed: int) -> TrainConfig:
        """The run of a row of Table 6 or 7; prior and losses are those of the row's file."""
        paper = read_config(FOLDER / f"{row}.yaml")
        network = paper.network_config()
        assert network is not None  # every row's file names one
        prior = network.prior
        tuning = row in TABLE7
        if tuning:
            stage = StageConfig(self.tuning_steps, lr=2e-4, final_lr=1e-6, losses=paper.stages[1].losses)
        else:
            warmup = min(100, self.steps // 10)
            stage = StageConfig(self.steps, lr=1e-3, final_lr=1e-6, warmup=warmup, losses=LossConfig())
        first = "table6-bpa" if prior == "bpa" else "table6-nafnet"
        return TrainConfig(
            name=row,
            stages=(stage,),
            data=(DataConfig(NAME, str(self.scenes)),),
            network=dataclasses.replace(self.network, prior=prior).to_dict(),
            init=str(self.folder(first, seed) / "checkpoint") if tuning else None,
            clip=str(self.checkpoint),
            ensemble=paper.ensemble,
            seed=seed,
            crop=self.crop,
            batch=self.batch,
            permute_channels=True,
            ema=0.99,
            clip_gradient=0.3,
            precision="fp32",  # the same on every CPU; without bf16 arithmetic, mixed precision is 14 times slower
            device="cpu",
            threads=self.threads,
            log_every=max(min(100, stage.steps or 1), 1),
            save_every=500,
        )

    def folder(self, row: str, seed: int) -> Path:
        """The folder of a run."""
        return self.work / f"{row}-{seed}"


def run_row(options: Options, row: str, seed: int) -> dict[str, Any]:
    """Trains and scores one row with one seed, or reads the result of an earlier run.

    Raises:
        LDPError: The run's folder holds another run, or training or scoring failed.
    """
    config, folder = options.plan(row, seed), options.folder(row, seed)
    record = folder / "result.json"
    if record.is_file():
        result: dict[str, Any] = json.loads(record.read_text())
        if result["config"] != config.to_dict():
            raise AblationError(f"{folder} holds a run with other settings; remove it or give another --work")
        return result
    checkpoint = Checkpoint.open(train(config, folder))
    restorer = TorchDeblurrer(model_from_checkpoint(checkpoint))
    report = score_dataset(restorer, open_dataset(NAME, options.scenes, "val"), row, progress=_bar(f"{row} {seed}"))
    result = {
        "row": row,
        "seed": seed,
        "config": config.to_dict(),
        "figures": report.summary()[""],
        "scenes": len(report.scores),
        "parameters": sum(parameter.numel() for parameter in checkpoint.network().parameters()),
        "seconds": checkpoint.training()["deblur"]["seconds"],
    }
    write_text(record, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def score_prompts(options: Options) -> list[dict[str, Any]]:
    """Compares the blur map of each prompt and ensemble with the disparity: held-out scenes, and the motorcycle.

    A pixel is blurred where |DP disparity| > 1 px, as in the paper. The held-out shards may be those that the prompts
    were calibrated on; the motorcycle scene is not.
    """
    checkpoint = Checkpoint.open(options.checkpoint)
    clip = checkpoint.clip()
    windows, prompts = checkpoint.windows(clip.encoder.patch), checkpoint.prompts()
    rows = []
    for label, ensemble in TABLE5.items():
        estimator = BlurEstimator(clip, prompts, windows, options.network.multiple, ensemble)
        figures = {}
        for what, dataset in (("scenes", open_dataset(NAME, options.scenes, "val")), ("motorcycle", _Motorcycle())):
            logits = _logits(dataset, estimator, label)
            figures[what] = score_maps(dataset, logits, estimator.patch)
        rows.append({"label": label, "ensemble": ensemble, **figures})
    return rows


def score_maps(dataset: PairDataset, logits: Sequence[NDArray[np.float32]], patch: int) -> dict[str, float]:
    """Accuracy and balanced accuracy over all pixels of a data set, and the mean of 1 - |rho_s| over its pairs.

    Args:
        dataset: Pairs with disparity.
        logits: Blur logits of each pair, one value per patch.
        patch: Side of a patch in px.
    """
    counts = np.zeros((2, 2), np.int64)  # truth, prediction
    disagreements = []
    for index, z in enumerate(logits):
        disparity = dataset[index].disparity
        assert disparity is not None  # rendered scenes have one
        known = np.isfinite(disparity)
        distance = np.abs(disparity[known])
        blur_map = upsample_map(z, disparity.shape, patch)[known]
        truth, predicted = distance > SHARP_DISPARITY, blur_map > 0.5
        np.add.at(counts, (truth.astype(int), predicted.astype(int)), 1)
        if np.ptp(distance) and np.ptp(blur_map):
            disagreements.append(rank_disagreement(blur_map, distance))
    recalls = np.diag(counts) / counts.sum(1)
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "balanced_accuracy": float(recalls.mean()),
        "rank_disagreement": float(np.mean(disagreements)),
    }


def paired(differences: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation and half width of the 95 % interval (Student's t) of differences of one seed each."""
    values = np.asarray(differences, np.float64)
    n = len(values)
    deviation = float(values.std(ddof=1)) if n > 1 else None
    half = None if deviation is None else float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {"mean": float(values.mean()), "deviation": deviation, "half_width": half}


def make_report(runs: Sequence[Mapping[str, Any]], prompts: Sequence[Mapping[str, Any]], options: Options) -> Report:
    """The report: every run, without its configuration, which names folders of this machine."""
    shared = {key: value for key, value in asdict(options).items() if key not in ("scenes", "checkpoint", "work")}
    shared |= {"clip": options.checkpoint.name, "network": options.network.to_dict()}
    shards = len(list(options.scenes.glob(SHARD_PATTERN)))
    shared["shards"] = {"trained_on": shards - HELD_OUT_SHARDS, "held_out": HELD_OUT_SHARDS}
    shown = [{key: value for key, value in run.items() if key != "config"} for run in runs]
    return Report.new("ablations", {"options": shared, "runs": shown, "table5": list(prompts)})


def markdown(report: Report) -> str:
    """The tables for people."""
    options, runs = report.data["options"], report.data["runs"]
    parts = [
        "# Ablations at small scale",
        "",
        "The rows of the paper's Tables 5, 6 and 7 with a narrow network "
        f"(width {options['network']['width']}) on simulated pairs, on a CPU. The paper's rows are its small network "
        "(width 32) after 6 million steps on DPD-blur: compare signs and order, not figures. Written by "
        "`models/recipes/ablations/run.py`.",
    ]
    parts += _table6(runs, options) + _table7(runs, options) + _table5(report.data["table5"])
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder of shards, see ldp-export data render")
    parser.add_argument("--checkpoint", type=Path, default=Path("models/checkpoints/ldp-nano"), help="CLIP to use")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--side-seeds",
        type=int,
        nargs="+",
        help="seeds of the rows beside the main comparison (default: all)",
    )
    parser.add_argument("--steps", type=int, default=1500, help="steps of each run of Table 6")
    parser.add_argument("--tuning-steps", type=int, default=400, help="steps of each run of Table 7")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--tables", type=int, nargs="+", choices=(5, 6, 7), default=[5, 6, 7])
    args = parser.parse_args(argv)
    options = Options(args.scenes, args.checkpoint, args.work, args.steps, args.tuning_steps, threads=args.threads)
    try:
        prompts = score_prompts(options) if 5 in args.tables else []
        runs = []
        for seed in args.seeds:  # seed by seed: all rows are comparable after the first
            main_only = args.side_seeds is not None and seed not in args.side_seeds
            for row in _rows_of(args.tables, main_only):
                runs.append(run_row(options, row, seed))
                scores = runs[-1]["figures"]
                print(f"{row} seed {seed}: {scores['psnr']:.3f} dB, SSIM {scores['ssim']:.4f}", flush=True)
            report = make_report(runs, prompts, options)
            save(report, markdown(report), args.output)
    except LDPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output / "ablations.md")
    return 0


# --- parts ----------------------------------------------------------------------------------------------------


class _Motorcycle:
    """The held-out scene in both focus settings; nothing was trained or calibrated on it. A ``PairDataset``."""

    name, split = "motorcycle", "test"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> PairSample:
        focus = ("near", "far")[index]
        pair = focus_setting(focus)
        views = (view.astype(np.uint8) for view in (pair.left, pair.right))
        return PairSample(focus, *views, disparity=disparity_in_pixels(pair.coc).astype(np.float32))

    def names(self) -> tuple[str, ...]:
        return "near", "far"

    def subsets(self) -> dict[str, frozenset[str]]:
        return {}


def _rows_of(tables: Sequence[int], main_only: bool) -> list[str]:
    """The rows to run; those of Table 7 start from Table 6's."""
    rows = [*(TABLE6 if {6, 7} & set(tables) else ()), *(TABLE7 if 7 in tables else ())]
    return [row for row in rows if not main_only or row in MAIN]


def _logits(dataset: PairDataset, estimator: BlurEstimator, label: str) -> list[NDArray[np.float32]]:
    cache = cache_folder("blur-logits")
    return [z for chunk in _bar(label)(chunks(len(dataset))) for z in chunk_logits(dataset, chunk, estimator, cache)]


def _bar(what: str) -> Any:
    return lambda items: tqdm(items, desc=what, disable=None, leave=False, file=sys.stderr)


def _by_row(runs: Sequence[Mapping[str, Any]], row: str) -> dict[int, Mapping[str, Any]]:
    """The runs of a row by seed."""
    return {run["seed"]: run for run in runs if run["row"] == row}


def _spread(values: Sequence[float], decimals: int) -> str:
    """Mean and standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{decimals}f}"
    return f"{np.mean(values):.{decimals}f} ± {np.std(values, ddof=1):.{decimals}f}"


def _difference(runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> tuple[str, str]:
    """The difference in PSNR to another row with the same seed: mean and 95 % interval; every seed's."""
    values = [run["figures"]["psnr"] - base[seed]["figures"]["psnr"] for seed, run in runs.items()]
    summary = paired(values)
    half = summary["half_width"]
    mean = f"{summary['mean']:+.3f}" + ("" if half is None else f" ± {half:.3f}")
    return mean, ", ".join(f"{value:+.3f}" for value in values)


def _rows(
    runs: Sequence[Mapping[str, Any]], labels: Mapping[str, str], bases: Mapping[str, str], paper: Mapping[str, float]
) -> list[list[str | None]]:
    """One line of a table per row of the ablation: label, figures, differences, the paper's difference."""
    lines: list[list[str | None]] = []
    for row, label in labels.items():
        own = _by_row(runs, row)
        if not own:
            continue
        scores = [run["figures"] for run in own.values()]
        psnr, ssim = (_spread([score[key] for score in scores], n) for key, n in (("psnr", 3), ("ssim", 4)))
        base = bases[row]
        differences = ("–", "–") if base == row else _difference(own, _by_row(runs, base))
        printed = "–" if base == row else f"{paper[row] - paper[base]:+.2f}"
        parameters = f"{next(iter(own.values()))['parameters']:,}"
        lines.append([label, parameters, psnr, ssim, *differences, printed])
    return lines


_HEADER = ["", "parameters", "PSNR, dB", "SSIM", "difference, dB", "by seed", "paper's difference"]
_READING = (
    "Seeds: {seeds}. Figures are means over seeds ± one standard deviation, of {scenes} scenes that no run trained on. "
    "A difference is of runs of one seed; ± is the half width of its 95 % interval (Student's t): where that is wider "
    "than the difference, the order is not settled."
)


def _reading(runs: Sequence[Mapping[str, Any]]) -> str:
    return _READING.format(
        seeds=", ".join(str(seed) for seed in sorted({run["seed"] for run in runs})), scenes=runs[0]["scenes"]
    )


def _table6(runs: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    runs = [run for run in runs if run["row"] in TABLE6]
    if not runs:
        return []
    paper = {row: load_table(6).find(label).values["psnr"] for row, label in TABLE6.items()}
    bases = dict.fromkeys(TABLE6, "table6-nafnet")
    seconds = [run["seconds"] for run in runs]
    alike = [load_table(7).find(bpa, "char").values["psnr"] for bpa in ("yes", "no")]
    return [
        "",
        "## Table 6: how the network uses the blur map",
        "",
        f"Each row: {options['steps']} steps of {options['batch']} crops of {options['crop']} px from scratch, the "
        f"Charbonnier loss, {min(seconds):.0f} to {max(seconds):.0f} s per run. {_reading(runs)}",
        f"The center view scores {runs[0]['figures']['center_psnr']:.3f} dB. Differences are to NAFNet. The paper's "
        "NAFNet was trained with the Charbonnier loss and its BPA block with all losses; with the Charbonnier loss for "
        f"both its Table 7 has a difference of {alike[0] - alike[1]:+.2f} dB.",
        "",
        markdown_table(_HEADER, _rows(runs, TABLE6, bases, paper)),
    ]


def _table7(runs: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    if not any(run["row"] in TABLE7 for run in runs):
        return []
    paper = {row: load_table(7).find(*labels).values["psnr"] for row, labels in TABLE7.items()}
    bases = {row: "table7-bpa-char" if bpa == "yes" else "table7-nafnet-char" for row, (bpa, _) in TABLE7.items()}
    names = {row: f"{'BPA' if bpa == 'yes' else 'NAFNet'}, {losses}" for row, (bpa, losses) in TABLE7.items()}
    runs = [run for run in runs if run["row"] in TABLE7]
    return [
        "",
        "## Table 7: the losses",
        "",
        f"Each row starts from Table 6's network of its seed for {options['tuning_steps']} steps with the losses of "
        f"the paper's second stage and their weights (char: Charbonnier, bal: blur-aware, bwl: blur-weighting, total: "
        f"all three). {_reading(runs)} Differences are to the Charbonnier loss alone.",
        "",
        markdown_table(_HEADER, _rows(runs, names, bases, paper)),
    ]


def _table5(prompts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not prompts:
        return []
    keys = ("accuracy", "balanced_accuracy", "rank_disagreement")
    lines = [
        [row["label"], *(f"{row[what][key]:.3f}" for what in ("scenes", "motorcycle") for key in keys)]
        for row in prompts
    ]
    names = ("accuracy", "balanced accuracy", "1 - abs(rho_s)")
    header = ["", *(f"{what}: {name}" for what in ("held-out scenes", "motorcycle") for name in names)]
    return [
        "",
        "## Table 5: the blur map of each prompt",
        "",
        "No training: the blur map of the checkpoint's own CLIP with each prompt alone, each format (Ens.1) and all "
        "prompts (Ens.2) against the true disparity; a pixel is blurred where |DP disparity| > 1 px. Accuracies are "
        "over all pixels. The prompts may have been calibrated on the held-out scenes; the motorcycle, in two focus "
        "settings, nothing was trained or calibrated on. The paper compares restorations here, not blur maps.",
        "",
        markdown_table(header, lines),
    ]


if __name__ == "__main__":
    sys.exit(main())
