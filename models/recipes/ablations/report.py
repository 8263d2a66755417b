"""The ablation's report: the runs as JSON, and their tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness.results import Report
from benchmarks.harness.tables import markdown_table
from ldp_export.data.simulated import HELD_OUT_SHARDS
from ldp_export.evaluation.paper import load_table
from ldp_export.simulation.shards import SHARD_PATTERN, scenes_in_shard
from models.recipes.ablations.rows import DESIGNS, TABLE6, Options
from models.recipes.ablations.scoring import CENTER, MAPS

Run = Mapping[str, Any]

BASE = "table6-nafnet"
"""What the rows of Table 6 are compared with: no prior."""

_TRUE, _CLIP, _BLANK = MAPS


def make_report(runs: Sequence[Run], prompts: Sequence[Mapping[str, Any]], options: Options) -> Report:
    """The report: every run, without its configuration, which names folders of this machine."""
    shared = {key: value for key, value in asdict(options).items() if key not in ("scenes", "checkpoint", "work")}
    shards = sorted(options.scenes.glob(SHARD_PATTERN))
    counts = [scenes_in_shard(path) for path in shards]
    shared |= {
        "start": options.checkpoint.name,
        "trained_on": sum(counts[HELD_OUT_SHARDS:]),
        "held_out": sum(counts[:HELD_OUT_SHARDS]),
    }
    shown = [{key: value for key, value in run.items() if key != "config"} for run in runs]
    return Report.new("ablations", {"options": shared, "runs": shown, "table5": list(prompts)})


def markdown(report: Report) -> str:
    """The tables for people."""
    options, runs = report.data["options"], report.data["runs"]
    parts = [
        "# Ablations at small scale",
        "",
        "What was run of the paper's Tables 5 and 6, and of configs against each other, on simulated pairs and a CPU. "
        "The paper's rows are its small network (width 32) after 6 million steps on DPD-blur: compare signs and order, "
        f"not figures. Runs take crops of {options['crop']} px, {options['batch']} a step, {options['trained_on']:,} "
        f"scenes, {options['precision']}, {options['threads']} thread; NAFNet's loss (minus PSNR). Scores are means "
        f"over the {options['held_out']} scenes that no run trained on; *blurred* are those with a DP disparity of "
        "more than 1 px somewhere. Written by `models/recipes/ablations/run.py`.",
    ]
    parts += _table6(runs, options) + _designs(runs, options) + _photographs(runs) + _table5(report.data["table5"])
    return "\n".join(parts) + "\n"


def paired(differences: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation and half width of the 95 % interval (Student's t) of differences of one seed each."""
    values = np.asarray(differences, np.float64)
    n = len(values)
    deviation = float(values.std(ddof=1)) if n > 1 else None
    half = None if deviation is None else float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {"mean": float(values.mean()), "deviation": deviation, "half_width": half}


# --- parts ----------------------------------------------------------------------------------------------------


def _by_row(runs: Sequence[Run], row: str) -> dict[int, Run]:
    """The runs of a row by seed."""
    return {run["seed"]: run for run in runs if run["row"] == row}


def _used(run: Run) -> str:
    """The blur map that a run's main score was made with: CLIP's, or none for a network that reads none."""
    return _CLIP if _CLIP in run["scenes"] else _BLANK


def _gain(run: Run, what: str, column: str = "psnr") -> float:
    """The gain in dB over the center view with one of ``MAPS``."""
    return float(run["scenes"][what][column] - run["scenes"][CENTER][column])


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation."""
    if not values:
        return "–"
    mean = format(np.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(np.std(values, ddof=1), form.lstrip('+'))}"


def _differences(runs: Mapping[int, Run], base: Mapping[int, Run], what: str | None = None) -> list[float]:
    """Of each seed that both rows have: how much more a row gains, with one of ``MAPS`` or its own."""
    return [
        _gain(run, what or _used(run)) - _gain(base[seed], _used(base[seed]))
        for seed, run in runs.items()
        if seed in base and (what or _used(run)) in run["scenes"]
    ]


def _interval(values: Sequence[float]) -> str:
    if not values:
        return "–"
    summary = paired(values)
    half = summary["half_width"]
    return f"{summary['mean']:+.3f}" + ("" if half is None else f" ± {half:.3f}")


_READING = (
    "Figures are means over seeds ± one standard deviation. A difference is of runs of one seed; ± is the half width "
    "of its 95 % interval (Student's t): where that is wider than the difference, the order is not settled."
)


def _table6(runs: Sequence[Run], options: Mapping[str, Any]) -> list[str]:
    runs = [run for run in runs if run["row"] in TABLE6]
    base = _by_row(runs, BASE)
    if not runs:
        return []
    paper = {row: load_table(6).find(label).values["psnr"] for row, label in TABLE6.items()}
    alike = [load_table(7).find(bpa, "char").values["psnr"] for bpa in ("yes", "no")]
    lines = []
    for row, label in TABLE6.items():
        own = _by_row(runs, row)
        if not own:
            continue
        gains = [_gain(run, _used(run)) for run in own.values()]
        blurred = [_gain(run, _used(run), "psnr_blurred") for run in own.values()]
        ssims = [run["scenes"][_used(run)]["ssim"] for run in own.values()]
        values = [] if row == BASE else _differences(own, base)
        true, blank = ([] if row == BASE else _differences(own, base, what) for what in (_TRUE, _BLANK))
        lines.append(
            [
                label,
                f"{next(iter(own.values()))['parameters']:,}",
                ", ".join(map(str, own)),
                _spread(gains, "+.3f"),
                _spread(blurred, "+.3f"),
                _spread(ssims, ".4f"),
                _interval(values),
                ", ".join(f"{value:+.3f}" for value in values) or "–",
                _interval(true),
                _interval(blank),
                "–" if row == BASE else f"{paper[row] - paper[BASE]:+.2f}",
            ]
        )
    header = [
        "", "parameters", "seeds", "gain, dB", "gain, blurred scenes", "SSIM", "difference, dB", "by seed",
        "difference, true map", "difference, blank map", "paper's difference",
    ]  # fmt: skip
    return [
        "",
        "## Table 6: how the network uses the blur map",
        "",
        f"Each row: {options['steps']} steps from the weights of {options['start']} without its attention block, at a "
        f"learning rate of 5e-4; {_seconds(runs)} a run. What a row adds to them is new and begins with no effect. "
        f"{_READING}",
        f"The center view scores {runs[0]['scenes'][CENTER]['psnr']:.3f} dB; gains are over it, with CLIP's blur map. "
        "Differences are to NAFNet, with CLIP's map, with that of the true disparity, and with a blank one. The "
        "paper's NAFNet was trained with the Charbonnier loss and its BPA block with all losses; with the Charbonnier "
        f"loss for both its Table 7 has a difference of {alike[0] - alike[1]:+.2f} dB.",
        "",
        markdown_table(header, lines),
    ]


def _designs(runs: Sequence[Run], options: Mapping[str, Any]) -> list[str]:
    runs = [run for run in runs if run["row"] in DESIGNS]
    if not runs:
        return []
    base = _by_row(runs, next(iter(DESIGNS)))
    lines = []
    for row, label in DESIGNS.items():
        own = _by_row(runs, row)
        if not own:
            continue
        values = [] if own == base else _differences(own, base)
        lines.append(
            [
                f"narrow {label}",
                f"{next(iter(own.values()))['parameters']:,}",
                ", ".join(map(str, own)),
                str(options["design_steps"][row]),
                _seconds(list(own.values())),
                _spread([_gain(run, _used(run)) for run in own.values()], "+.3f"),
                _spread([_gain(run, _used(run), "psnr_blurred") for run in own.values()], "+.3f"),
                _interval(values),
            ]
        )
    header = ["", "parameters", "seeds", "steps", "time a run", "gain, dB", "gain, blurred scenes", "difference, dB"]
    return [
        "",
        "## Configs at about equal training time",
        "",
        f"A quarter of each config's channels, trained from scratch in FP32. {_READING} Gains are over the center "
        "view, with CLIP's blur map.",
        "",
        markdown_table(header, lines),
    ]


def _seconds(runs: Sequence[Run]) -> str:
    """The time of runs: of the processor where it is known, since the machine may have had other load."""
    cpu = [run["cpu_seconds"] for run in runs if run["cpu_seconds"] is not None]
    if cpu:
        return f"{min(cpu):.0f} to {max(cpu):.0f} s of processor time"
    wall = [run["seconds"] for run in runs]
    return f"{min(wall):.0f} to {max(wall):.0f} s beside other load"


def _photographs(runs: Sequence[Run]) -> list[str]:
    scored = [run for run in runs if "photographs" in run]
    if not scored:
        return []
    lines = []
    for row, label in (TABLE6 | {row: f"narrow {name}" for row, name in DESIGNS.items()}).items():
        rows = _by_row(scored, row)
        own = [run["photographs"] for run in rows.values()]
        for group in own[0] if own else ():
            for what in (_CLIP, _BLANK):
                found = [run[group] for run in own if what in run[group]]
                seeds = ", ".join(map(str, rows))
                if found:
                    gains = [
                        _spread([one[what][column] - one[CENTER][column] for one in found], "+.2f")
                        for column in ("psnr", "matched_psnr")
                    ]
                    lines.append([label, group, {_CLIP: "CLIP's", _BLANK: "blank"}[what], seeds, *gains])
    return [
        "",
        "## Real pairs",
        "",
        "The same networks on photographs, which nothing was trained on: gains over the center view in dB, means over "
        "pairs and over seeds ± one standard deviation. *Matched* takes the low frequencies from the target, which was "
        "shot in other light.",
        "",
        markdown_table(["", "pairs", "blur map", "seeds", "gain, dB", "matched gain, dB"], lines, "llllrr"),
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
