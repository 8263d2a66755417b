"""Latency of every backend and precision of this machine, beside torch with the same weights or beside another network.

Each configuration is timed in blocks, one process per block. The blocks of all configurations alternate in rounds, each
in a new order, so that other load on the machine affects all alike. Rounds go on until every median is known to within
3 % or the time is up. A time is that of one call, from both views in memory to the restored image in memory; reading
and writing files is measured apart.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import BenchmarkError, BundleId, Report, publish
from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.harness.tables import size_text
from benchmarks.harness.timing import Ratio, ratio, settled, summarise
from benchmarks.latency.contenders import REFERENCE, TORCH, Contender, add_contenders, find_contenders
from benchmarks.latency.tables import to_markdown
from benchmarks.latency.worker import COPIES, Block, Spec, Timing

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks latency
  python -m benchmarks latency --bundle ldp-nano --shape 560x840 1120x1680
  python -m benchmarks latency --config small fast --backend openvino:fp32
  python -m benchmarks latency --backend openvino:bf16 torch:fp32 --repeats 5

A backend is NAME (all of its precisions here), NAME:PRECISION or NAME:auto (the
precision that the runtime would choose); torch is eager torch, and
torch-channels-last the same with that memory layout. --config measures random
weights of networks of ours with the paper's CLIP; a bundle is exported once and
kept in the cache. Several networks are timed in turn, and compared with the first.

Writes latency-NAME.json and latency-NAME.md for each into the output folder.
"""

SPREAD = 0.03
MIN_ROUNDS = 3
MOST_RUNS = 200
WARM_UP_SECONDS = 0.3
BLOCK_SECONDS = 2.0
SAME_WEIGHTS_DB = 45.0
"""Least PSNR between 8-bit images of FP32 graphs with the same weights; rounding leaves 60 dB."""


@dataclass
class _Track:
    """The blocks of a bundle and a contender at one shape so far; an error ends them."""

    bundle: Bundle
    contender: Contender
    shape: tuple[int, int]
    blocks: list[Block] = field(default_factory=list)
    error: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_contenders(parser, several=True)
    options.add_shapes(parser, [options.DEFAULT_SHAPE])
    options.add_threads(parser)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="no round starts that would end later (default: %(default)g)"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="exactly so many rounds, however long they take")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the results."""
    from benchmarks.harness.bundles import open_bundle

    options.check_positive(arguments, "repeats")
    bundles = [open_bundle(arguments.bundle, config) for config in dict.fromkeys(arguments.config or [None])]
    found = [find_contenders(arguments.backend, bundle, arguments.checkpoint) for bundle in bundles]
    measured = measure(
        [(bundle, contenders) for bundle, (contenders, _) in zip(bundles, found, strict=True)],
        arguments.shape,
        threads=arguments.threads,
        checkpoint=arguments.checkpoint,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
    )
    for bundle, data, (_, skipped) in zip(bundles, measured, found, strict=True):
        report = Report.new("latency", {**data, "left_out": skipped}, bundle)
        publish(report, to_markdown(report), arguments.output)


def measure(
    entries: Sequence[tuple[Bundle, Sequence[Contender]]],
    shapes: Sequence[tuple[int, int]],
    *,
    threads: int | None = None,
    checkpoint: Path | None = None,
    seconds: float = 300.0,
    repeats: int | None = None,
) -> list[dict[str, Any]]:
    """Times bundles round by round.

    Args:
        entries: The bundles, each with its contenders.
        shapes: Heights and widths in px.
        threads: CPU threads; None is each backend's own choice.
        checkpoint: The checkpoint's folder for torch, or None to look for it.
        seconds: No round but the first starts if it would probably end later than this.
        repeats: Exactly so many rounds instead.

    Returns:
        For each bundle the ``data`` of its report, except ``left_out``.

    Raises:
        BenchmarkError: Nothing could be timed, or torch's weights are not the bundle's.
    """
    from tqdm import tqdm

    tracks = [
        _Track(bundle, contender, shape)
        for shape in shapes
        for bundle, contenders in entries
        for contender in contenders
    ]
    begin, rounds = time.monotonic(), 0
    with (
        watch_load() as load,
        tempfile.TemporaryDirectory(prefix="ldp-bench-") as scratch,
        tqdm(disable=None, unit="block") as bar,
    ):
        folder = Path(scratch)
        for shape in shapes:
            write_pair(folder, shape)
        while True:
            order = [track for track in tracks if track.error is None]
            random.Random(rounds).shuffle(order)
            for track in order:
                name = f"{track.bundle.manifest.name}, {track.contender.name}, {size_text(track.shape)}"
                bar.set_description(f"round {rounds + 1}, {name}")
                _add_block(track, folder, rounds == 0, threads, checkpoint)
                bar.update()
            rounds += 1
            alive = [track for track in tracks if track.error is None]
            spent = time.monotonic() - begin
            if not alive or rounds == repeats:
                break
            if repeats is None and rounds >= MIN_ROUNDS:
                summaries = [summarise([block.seconds for block in track.blocks]) for track in alive]
                if settled(summaries, SPREAD):
                    break
            if repeats is None and spent * (rounds + 1) / rounds > seconds:
                break
        agreement = _agreement(folder, tracks)
    if not alive:
        raise BenchmarkError(
            "nothing could be timed: " + "; ".join(f"{track.contender.name}: {track.error}" for track in tracks)
        )
    first = entries[0][0]
    settings = {
        "threads": threads,
        "rounds": rounds,
        "seconds": round(spent, 1),
        "time_limit": None if repeats is not None else seconds,
        "spread_wanted": SPREAD,
        "block_seconds": BLOCK_SECONDS,
        "warm_up_seconds": WARM_UP_SECONDS,
    }
    return [
        {
            "network": str(bundle.manifest.network.get("name", "")),
            "beside": None if bundle is first else asdict(BundleId.from_bundle(first)),
            "settings": settings,
            "load_average": load,
            "series": [
                {
                    "shape": list(shape),
                    "configurations": [
                        _configuration(track, tracks, psnr)
                        for track, psnr in zip(tracks, agreement, strict=True)
                        if track.bundle is bundle and track.shape == shape
                    ],
                }
                for shape in shapes
            ],
        }
        for bundle, _ in entries
    ]


def _add_block(track: _Track, folder: Path, first: bool, threads: int | None, checkpoint: Path | None) -> None:
    """Adds the block of a worker, or the reason why there is none."""
    left, right = map(str, pair_files(folder, track.shape))
    timing = Timing(
        backend=track.contender.backend,
        precision=track.contender.precision,
        left=left,
        right=right,
        threads=threads,
        seconds=BLOCK_SECONDS,
        most=MOST_RUNS,
        spawned=time.time(),
        warm_up=WARM_UP_SECONDS,
        restored=str(_restored(folder, track, track.contender)) if first else None,
    )
    spec = Spec(timing, str(track.bundle.path.absolute()), None if checkpoint is None else str(checkpoint.absolute()))
    try:
        track.blocks.append(Block(**run_spec("benchmarks.latency.worker", spec, folder)))
    except BenchmarkError as error:
        track.error = str(error)


def _agreement(folder: Path, tracks: Sequence[_Track]) -> list[float | None]:
    """PSNR in dB between each track's restored image and torch's in FP32, infinite where they are equal.

    Raises:
        BenchmarkError: A backend in FP32 restores another image, so torch's weights are not the bundle's.
    """
    import numpy as np

    from ldp_runtime.images.quality import psnr

    values: list[float | None] = []
    for track in tracks:
        reference, path = (_restored(folder, track, contender) for contender in (REFERENCE, track.contender))
        if not path.is_file() or not reference.is_file():
            values.append(None)
            continue
        image = np.load(path)
        value = psnr(image, np.load(reference), data_range=float(np.iinfo(image.dtype).max))
        if track.contender.precision == "fp32" and value < SAME_WEIGHTS_DB:
            raise BenchmarkError(
                f"expected {track.contender.name} to restore what torch restores, got a PSNR of {value:.1f} dB "
                "between them: the checkpoint is not what the bundle was exported from; give the right --checkpoint"
            )
        values.append(value)
    return values


def _configuration(track: _Track, tracks: Sequence[_Track], psnr: float | None) -> dict[str, Any]:
    """A track's part of the report."""
    contender, blocks = track.contender, track.blocks
    head = {"name": contender.name, "backend": contender.backend, "precision": contender.precision}
    if track.error is not None:
        return {**head, "gpu": False, "error": track.error}
    median = statistics.median
    times = [block.seconds for block in blocks]
    first, ratios = tracks[0].bundle, {}
    for other in tracks:
        if other.shape != track.shape or other.error is not None:
            continue
        to = [block.seconds for block in other.blocks]
        if other.bundle is track.bundle and other.contender.backend in TORCH:
            ratios[other.contender.name] = asdict(Ratio(1.0, None, None) if other is track else ratio(times, to))
        elif other.bundle is first and track.bundle is not first and other.contender == contender:
            ratios[first.manifest.name] = asdict(ratio(times, to))
    files = {key: median(block.files[key] for block in blocks) for key in ("read", "write")}
    names = dict.fromkeys(name for block in blocks for name in block.stages)
    stages = {name: median(v for block in blocks for v in block.stages.get(name, ())) for name in names}
    starts = [{**block.start_up, "total": sum(block.start_up.values())} for block in blocks]
    warm = starts[1:] or starts
    device = {}
    for key, without in (("device", COPIES), ("device_and_copies", ())):
        runs = [
            [sum(v) for v in zip(*(t for name, t in block.stages.items() if name not in without), strict=True)]
            for block in blocks
        ]
        device[key] = asdict(summarise(runs)) if blocks[0].events and all(runs) else None
    summary = summarise(times)
    return {
        **head,
        "error": None,
        "gpu": blocks[0].gpu,
        **device,
        "runs_on": blocks[0].device,
        "seconds": {**asdict(summary), "known": summary.spread <= SPREAD},
        "ratios": ratios,
        "stages": {"read": files["read"], **stages, "write": files["write"]},
        "start_up": {key: median(start[key] for start in warm) for key in starts[0]},
        "first_start_up": starts[0],
        "host_bytes": max(block.host_bytes for block in blocks),
        "device_bytes": max((b.device_bytes for b in blocks if b.device_bytes is not None), default=None),
        "psnr_to_torch_db": psnr if psnr is not None and math.isfinite(psnr) else None,
        "equal_to_torch": psnr == math.inf,
        "blocks": [{"seconds": block.seconds, "stages": block.stages} for block in blocks],
    }


def _restored(folder: Path, track: _Track, contender: Contender) -> Path:
    """Where the image of a contender at a track's bundle and shape is kept."""
    name = f"{track.bundle.manifest.name}-{contender.backend}-{contender.precision}"
    return folder / f"{name}-{size_text(track.shape)}.npy"
