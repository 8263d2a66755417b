"""What CLIP's windows and prompts cost, and what they do to the blur map and to the restored image.

A canvas is cut into windows, since attention over a whole frame is quadratic in its pixels. Each choice of windows runs
the same encoder, its positional embeddings resized to the window. An ensemble of one format of prompts alone runs on
one canvas of each window alone. CLIP may also see the pair reduced: then a blur logit stands for a larger square. The
cost is that of the blur map of one pair; the quality is that of the held-out sample, where the bundle has trained
weights.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.tables import load_text, markdown_table, significant, size_text
from benchmarks.windows.worker import Row, Spec
from ldp_runtime.cache import ENV_CACHE
from ldp_runtime.stages.blur_map import ENSEMBLES

if TYPE_CHECKING:
    from ldp_export.checkpoint import Windows
    from ldp_export.clip import DenseCLIP
    from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks windows
  python -m benchmarks windows --config small
  python -m benchmarks windows --window 128 --overlap 0 16 32 --shape 560x840
  python -m benchmarks windows --window 128 --overlap 16 --ensemble ens2 dp-aware
  python -m benchmarks windows --window 64 128 --overlap 0 16 --reduce 1 2

Writes windows-NAME.json and windows-NAME.md into the output folder. With random
weights there is a cost and no quality.
"""

OVERLAPS = (0.125, 0.25, 0.5)
"""Default least overlaps as shares of a window, in whole patches; none is measured as well."""

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Default windows, as multiples of the bundle's own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    options.add_checkpoint(parser)
    parser.add_argument(
        "--window",
        nargs="+",
        type=int,
        metavar="PX",
        help="sides of windows (default: the bundle's own, halves and doubles of it and between)",
    )
    parser.add_argument(
        "--overlap",
        nargs="+",
        type=int,
        metavar="PX",
        help="what windows share (default: nothing, and an eighth, a quarter and half of each window)",
    )
    parser.add_argument(
        "--ensemble", nargs="+", choices=[*ENSEMBLES], help="prompts that take part (default: the bundle's own)"
    )
    parser.add_argument(
        "--reduce", nargs="+", type=int, default=[1], metavar="N", help="what CLIP's pair is reduced by (default: 1)"
    )
    options.add_backend(parser)
    options.add_threads(parser)
    options.add_shape(parser)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed runs of each (default: %(default)s)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the results."""
    from benchmarks.harness.bundles import open_bundle, reference_model

    options.check_positive(arguments, "rounds")
    bundle = open_bundle(arguments.bundle, arguments.config)
    clip = bundle.manifest.require_clip()
    chosen = choices(clip.window, clip.overlap, clip.patch, arguments.window, arguments.overlap)
    model = reference_model(bundle, arguments.checkpoint)
    assert model.clip is not None  # the bundle has CLIP
    own = bundle.manifest.ensemble
    with watch_load() as load:
        rows = measure(
            bundle,
            model.clip.encoder,
            chosen,
            list(dict.fromkeys([own, *(arguments.ensemble or [])])),
            backend=arguments.backend,
            threads=arguments.threads,
            shape=arguments.shape,
            rounds=arguments.rounds,
            reduce=sorted({1, *arguments.reduce}),
        )
    data = {
        "shape": list(arguments.shape),
        "threads": arguments.threads,
        "own": {"ensemble": own, "window": clip.window, "overlap": clip.overlap},
        "patch": clip.patch,
        "architecture": clip.architecture,
        "load_average": load,
        "rows": [asdict(row) for row in rows],
    }
    report = Report.new("windows", data, bundle)
    publish(report, to_markdown(report), arguments.output)


def choices(
    window: int, overlap: int, patch: int, windows: Sequence[int] | None, overlaps: Sequence[int] | None
) -> list[Windows]:
    """The choices to measure: the bundle's own windows and others, the smallest first.

    Args:
        window: Side of the bundle's own windows in px.
        overlap: Their overlap in px.
        patch: Side of CLIP's patch in px.
        windows: Sides of windows in px; None is ``SCALES``.
        overlaps: Their overlaps in px; None is ``OVERLAPS``.

    Raises:
        LDPError: A choice is not possible.
    """
    from ldp_export.checkpoint import Windows, choose_windows

    sides = [max(round(window * scale / patch), 2) * patch for scale in SCALES] if windows is None else windows
    found = {Windows(window, overlap)}
    for side in sides:
        parts = [max(int(side * share) // patch, 1) * patch for share in OVERLAPS]
        for shared in (0, *parts) if overlaps is None else overlaps:
            found.add(choose_windows(patch, side, shared))
    return sorted(found, key=lambda choice: (choice.window, choice.overlap))


def measure(
    bundle: Bundle,
    encoder: DenseCLIP,
    chosen: Sequence[Windows],
    ensembles: Sequence[str | int],
    *,
    backend: str = "auto",
    threads: int | None = None,
    shape: tuple[int, int] = options.DEFAULT_SHAPE,
    rounds: int = 1,
    reduce: Sequence[int] = (1,),
) -> list[Row]:
    """Measures every choice; those with windows of one size in a process of their own.

    Args:
        bundle: The bundle.
        encoder: Its encoder, FP32.
        chosen: Choices of windows.
        ensembles: Of prompts, each measured with every choice of windows.
        backend: ``NAME[:PRECISION]`` of a backend.
        threads: CPU threads; None is the backend's own choice.
        shape: Size of the pair that is timed, in px.
        rounds: Timed runs of each.
        reduce: See ``Spec``.

    Raises:
        BenchmarkError: A process failed; the message has its last line.
    """
    from tqdm import tqdm

    rows = []
    for window in tqdm(sorted({choice.window for choice in chosen}), desc="windows", disable=None, unit="size"):
        own = [choice for choice in chosen if choice.window == window]
        with tempfile.TemporaryDirectory(prefix="ldp-bench-") as name:
            scratch = Path(name)
            folders = [write_variant(bundle, encoder, choice, e, scratch) for choice in own for e in ensembles]
            spec = Spec([str(folder) for folder in folders], backend, threads, shape, rounds, reduce)
            # Graphs compiled for one measurement do not belong in the user's cache.
            environment = {ENV_CACHE: str(scratch / "cache")}
            try:
                values = run_spec("benchmarks.windows.worker", spec, scratch, environment)
            except BenchmarkError as error:
                raise BenchmarkError(
                    f"expected blur maps with windows of {window} px, got none: {error}; choose a smaller --window or "
                    "--shape"
                ) from error
        rows += [Row(**value) for value in values]
    return rows


def write_variant(bundle: Bundle, encoder: DenseCLIP, choice: Windows, ensemble: str | int, scratch: Path) -> Path:
    """A bundle with other windows and prompts in a folder of ``scratch``; graphs of the same inputs are shared.

    Args:
        bundle: The bundle with the FP32 graphs.
        encoder: Its encoder.
        choice: The windows.
        ensemble: The prompts.
        scratch: A folder.
    """
    from ldp_export.bundling.onnx_graphs import clip_graph, save_graph
    from ldp_export.clip import WindowEncoder
    from ldp_runtime.bundle.bundle import write_manifest
    from ldp_runtime.bundle.manifest import TEXT_EMBEDDINGS_FILE

    manifest = msgspec.structs.replace(bundle.manifest, ensemble=ensemble)
    graph = scratch / f"clip-{choice.window}-{'-'.join(manifest.canvases)}.onnx"
    if not graph.exists():
        save_graph(clip_graph(WindowEncoder(encoder, choice.window, manifest.canvases).eval(), half=False), graph)
    deblur = manifest.graphs["deblur"]["fp32"]
    folder = scratch / f"{choice.window}-{choice.overlap}-{ensemble}"
    folder.mkdir()
    (folder / graph.name).hardlink_to(graph)
    data = graph.with_name(f"{graph.name}.data")
    if data.exists():
        (folder / data.name).hardlink_to(data)
    for file in (TEXT_EMBEDDINGS_FILE, deblur, *bundle.weights[deblur]):
        shutil.copyfile(bundle.path / file, folder / file)
    clip = msgspec.structs.replace(manifest.require_clip(), window=choice.window, overlap=choice.overlap)
    graphs = {"clip": {"fp32": graph.name}, "deblur": {"fp32": deblur}}
    write_manifest(folder, msgspec.structs.replace(manifest, clip=clip, graphs=graphs, engines=(), quantization={}))
    return folder


def to_markdown(report: Report) -> str:
    """The table of a report, below a title.

    Args:
        report: Of kind "windows".
    """
    data = report.data
    own, rows = data["own"], data["rows"]
    base = next(median(row["seconds"]) for row in rows if _is_own(row, own))
    focus = list(rows[0]["quality"])
    header = ["prompts", "window, overlap px", "pair reduced by", "windows", "GFLOP", "seconds", "times its own"]
    for name in focus:
        header += [f"{name}: balanced accuracy", "Spearman", "gain dB"]
    table = []
    for row in rows:
        seconds = median(row["seconds"])
        mark = " (its own)" if _is_own(row, own) else ""
        cells = [row["ensemble"], f"{row['window']}, {row['overlap']}{mark}", row["reduce"], row["windows"]]
        cells += [significant(value) for value in (row["gflop"], seconds, seconds / base)]
        for name in focus:
            figures = row["quality"][name]
            cells += [f"{figures[key]:.4f}" for key in ("balanced_accuracy", "spearman")]
            cells.append(f"{figures['gain_db']:.2f}" if "gain_db" in figures else None)
        table.append(cells)
    loads = load_text(data["load_average"])
    ran = ", ".join(dict.fromkeys(f"{row['backend']} {row['precision']}" for row in rows))
    note = (
        "Quality is of the held-out sample at its two focus settings; the encoder was trained on windows of "
        "one size, which favours them."
        if focus
        else "The weights are random, so that there is no quality to measure."
    )
    return "\n\n".join(
        [
            f"# Windows and prompts of CLIP, {report.name}",
            f"{data['architecture']}, patches of {data['patch']} px. Seconds are of the blur map of a pair of "
            f"{size_text(data['shape'])} px by {ran}, medians of {len(rows[0]['seconds'])}; load average before and "
            f"after: {loads}. {note}",
            markdown_table(header, table),
        ]
    )


def _is_own(row: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return row["reduce"] == 1 and own == {name: row[name] for name in own}
