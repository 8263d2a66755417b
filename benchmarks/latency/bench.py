"""Latency of every backend and precision that this machine has, beside torch with the same weights.

Each configuration is timed in blocks, one process a block, and the blocks of all configurations alternate in rounds, in
a new order each, so that whatever else the machine does hits all alike. Rounds go on until every median is known to
within 3 % or the time is up. A time is that of one call, from both views in memory to the restored image in memory;
reading and writing files is measured apart.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import REPORTS, BenchmarkError, Report, load_text, markdown_table, save, significant
from benchmarks.latency.worker import FIRST_COUNTS
from ldp_runtime.errors import BackendError

if TYPE_CHECKING:
    from benchmarks.latency.worker import Block
    from ldp_runtime.bundle.bundle import Bundle

HELP = "Times every backend and precision beside torch with the same weights."
EXAMPLES = """\
examples:
  ldp bench latency
  ldp bench latency --bundle ldp-nano --shape 560x840 1120x1680
  ldp bench latency --config small --seconds 600
  ldp bench latency --backend openvino:bf16 torch:fp32 --repeats 5

A backend is given as NAME, which is all of its precisions here, NAME:PRECISION
or NAME:auto, the precision that the runtime would choose; torch is eager torch,
and torch-channels-last the same with that memory layout. With --config the weights
are random, of a network of the paper's size and its CLIP; the bundle is
exported once and kept in the cache.

Writes latency-NAME.json and latency-NAME.md into the output folder.
"""

DEFAULT_SHAPE = (1120, 1680)
CONFIG_NAMES = ("nano", "small", "large")
TORCH = ("torch", "torch-channels-last")
REFERENCE = "torch fp32"
ANY_TENSORRT = "cuda"
"""The backend that takes whichever TensorRT works: the two are timed under their own names."""

STAGES = ("upload", "prepare", "clip", "blur_logits", "deblur", "finish", "download")
"""The stages in the order of the pipeline; a backend may have some of them only."""

SPREAD = 0.03
MIN_ROUNDS = 3
MOST_RUNS = 200
WARM_UP_SECONDS = 0.3
BLOCK_SECONDS = 2.0
SAME_WEIGHTS_DB = 45.0
"""FP32 images of 8 bits that differ by more than this are not the work of the same weights: rounding leaves 60 dB."""

_SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "motorcycle"


@dataclass(frozen=True)
class Contender:
    """What is timed: a backend of the runtime, or torch in one memory layout, in one precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """For people and as a key: "openvino bf16"."""
        return f"{self.backend} {self.precision}"


@dataclass
class _Track:
    """The outcome of a contender at one shape so far; a failure ends its part."""

    contender: Contender
    shape: tuple[int, int]
    blocks: list[Block] = field(default_factory=list)
    error: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", metavar="NAME|DIR", help="the bundle to time (default: ldp-nano)")
    what.add_argument("--config", choices=CONFIG_NAMES, help="random weights of this network in place of a bundle")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the bundle's checkpoint, for torch")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["all"],
        metavar="NAME[:PRECISION|:auto]",
        help="what to time (default: all that this machine has)",
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        type=parse_shape,
        default=[DEFAULT_SHAPE],
        metavar="HxW",
        help="sizes of the image in px (default: 1120x1680)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: each backend's own choice)")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="no round starts that would end later (default: %(default)g)"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="exactly so many rounds, however long they take")
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results go")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the results."""
    from benchmarks.harness.bundles import open_bundle

    if arguments.repeats is not None and arguments.repeats < 1:
        raise BenchmarkError(f"expected --repeats of at least 1, got {arguments.repeats}")
    bundle = open_bundle(arguments.bundle, arguments.config)
    contenders, left_out = find_contenders(arguments.backend, bundle, arguments.checkpoint)
    data = measure(
        bundle,
        contenders,
        arguments.shape,
        threads=arguments.threads,
        checkpoint=arguments.checkpoint,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
    )
    data["left_out"] = left_out
    report = Report.new("latency", data, bundle)
    markdown = to_markdown(report)
    print(markdown)
    paths = save(report, arguments.output, f"latency-{bundle.manifest.name}", markdown)
    print(f"wrote {' and '.join(map(str, paths))}")


def parse_shape(text: str) -> tuple[int, int]:
    """Height and width in px of "1120x1680".

    Raises:
        argparse.ArgumentTypeError: It is not that form.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in px such as 1120x1680, got {text!r}")
    return int(sides[0]), int(sides[1])


def find_contenders(
    asked: Sequence[str], bundle: Bundle, checkpoint: Path | None
) -> tuple[list[Contender], dict[str, str]]:
    """What there is to time.

    Args:
        asked: Backends, each with or without a precision, or "all".
        bundle: For its graphs, and whether torch has its weights.
        checkpoint: The checkpoint's folder, or None to look for it.

    Returns:
        The contenders, torch last; and what "all" left out, with the reason.

    Raises:
        LDPError: A backend that was asked for by name does not work here.
    """
    from ldp_runtime.registry import BACKENDS

    found: dict[Contender, None] = {}
    left_out: dict[str, str] = {}
    everything = [name for name in BACKENDS if name != ANY_TENSORRT] + [*TORCH]
    names = [name for item in asked for name in (everything if item == "all" else [item])]
    for item in names:
        name, _, precision = item.partition(":")
        if name not in (*BACKENDS, *TORCH):
            raise BackendError(f"expected a backend, one of all, {', '.join((*BACKENDS, *TORCH))}, got {name!r}")
        try:
            have = _torch_precisions(bundle, checkpoint) if name in TORCH else _precisions(name, bundle)
        except BackendError as error:
            if item in asked:
                raise
            left_out[name] = str(error)
            continue
        if precision == "auto":
            precision = have[0]
        if precision and precision not in have:
            raise BackendError(f"expected a precision of {name} here, one of {', '.join(have)}, got {precision!r}")
        found |= {Contender(name, each): None for each in ([precision] if precision else have)}
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise BackendError(f"expected a backend that works here, got none: {reasons}")
    return list(found), left_out


def measure(
    bundle: Bundle,
    contenders: Sequence[Contender],
    shapes: Sequence[tuple[int, int]],
    *,
    threads: int | None = None,
    checkpoint: Path | None = None,
    seconds: float = 300.0,
    repeats: int | None = None,
) -> dict[str, Any]:
    """Times contenders round by round.

    Args:
        bundle: The bundle.
        contenders: What to time.
        shapes: Heights and widths in px.
        threads: CPU threads; None is each backend's own choice.
        checkpoint: The checkpoint's folder for torch, or None to look for it.
        seconds: No round but the first starts if it would probably end later than this.
        repeats: Exactly so many rounds in place of that.

    Returns:
        The ``data`` of the report, but ``left_out``.

    Raises:
        BenchmarkError: Nothing could be timed, or torch's weights are not the bundle's.
    """
    from tqdm import tqdm

    from benchmarks.harness.machine import load_average
    from benchmarks.harness.timing import settled, summarise

    tracks = [_Track(contender, shape) for shape in shapes for contender in contenders]
    loads = [load_average()]
    begin, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as name, tqdm(disable=None, unit="block") as bar:
        folder = Path(name)
        for shape in shapes:
            _write_pair(folder, shape)
        while True:
            order = [track for track in tracks if track.error is None]
            random.Random(rounds).shuffle(order)
            for track in order:
                bar.set_description(f"round {rounds + 1}, {track.contender.name}, {_size(track.shape)}")
                _add_block(track, bundle, folder, rounds == 0, threads, checkpoint)
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
    loads.append(load_average())
    if not alive:
        raise BenchmarkError(
            "nothing could be timed: " + "; ".join(f"{track.contender.name}: {track.error}" for track in tracks)
        )
    return {
        "network": str(bundle.manifest.network.get("name", "")),
        "settings": {
            "threads": threads,
            "rounds": rounds,
            "seconds": round(spent, 1),
            "time_limit": None if repeats is not None else seconds,
            "spread_wanted": SPREAD,
            "block_seconds": BLOCK_SECONDS,
            "warm_up_seconds": WARM_UP_SECONDS,
        },
        "load_average": {"before": loads[0], "after": loads[1]},
        "series": [
            {
                "shape": list(shape),
                "configurations": [
                    _configuration(track, tracks, agreement.get((track.contender.name, shape)))
                    for track in tracks
                    if track.shape == shape
                ],
            }
            for shape in shapes
        ],
    }


def verdicts(report: Report) -> list[dict[str, Any]]:
    """What the report's times say about the paper's, a verdict a GPU backend and time; one that says why not if none.

    Args:
        report: Of kind "latency".
    """
    from benchmarks.latency.verdict import as_json, verdict

    data = report.data
    network = str(data["network"])
    on_cpu = str(report.machine["cpu"]["name"])
    gpus = report.machine["gpus"]
    found = []
    for series in data["series"]:
        shape = (int(series["shape"][0]), int(series["shape"][1]))
        own = [c for c in series["configurations"] if c["gpu"] and c["error"] is None and c["backend"] not in TORCH]
        for configuration in own:
            for what, key in (("on the device, without copies", "device"), ("with both copies", "device_and_copies")):
                value = configuration[key] and configuration[key]["median"]
                on = gpus[0]["name"] if gpus else configuration["runs_on"]
                judged = verdict(network, shape, value, on, f"{what}, by {configuration['name']}", own_gpu_path=True)
                found.append({"configuration": configuration["name"], "shape": list(shape), **as_json(judged)})
        if not own:
            judged = verdict(network, shape, None, on_cpu, "", own_gpu_path=False)
            found.append({"configuration": None, "shape": list(shape), **as_json(judged)})
    return found


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title.

    Args:
        report: Of kind "latency".
    """
    data = report.data
    settings, load = data["settings"], data["load_average"]
    name = report.bundle.name if report.bundle else data["network"]
    parts = [f"# Latency of {name}"]
    for series in data["series"]:
        parts += [f"## {_size(series['shape'])} px", times_table(series), "Seconds by stage, medians:"]
        parts.append(stages_table(series))
        parts += [f"* {c['name']} failed: {c['error']}" for c in series["configurations"] if c["error"] is not None]
    parts += [f"* {name} was left out: {reason}" for name, reason in data["left_out"].items()]
    loads = load_text(load)
    threads = (
        "each backend's own choice of threads" if settings["threads"] is None else f"{settings['threads']} threads"
    )
    parts.append(
        f"A time is from both views in memory to the restored image in memory. {settings['rounds']} rounds in "
        f"{settings['seconds']:.0f} s, {threads}; load average before and after: {loads}. "
        "In brackets: the 95 % interval of the median or ratio, by resampling rounds. The first run of each process is "
        f"not counted, but for torch's where it takes {FIRST_COUNTS:g} s or more. Start-up is from the start of a "
        "process to its first image, in the later rounds, when caches are warm. Memory is the peak of the process."
    )
    parts += [f"* {text}" for text in dict.fromkeys(judged["text"] for judged in verdicts(report))]
    return "\n\n".join(parts)


def times_table(series: Mapping[str, Any]) -> str:
    """Times, ratios, start-up and memory of one shape."""
    fine = [c for c in series["configurations"] if c["error"] is None]
    on_device = {"device": "device s", "device_and_copies": "device and copies s"}
    on_device = on_device if any(c["device"] for c in fine) else {}
    rows = []
    for c in fine:
        seconds, ratios = c["seconds"], c["ratios"]
        psnr = "equal" if c["equal_to_torch"] else significant(c["psnr_to_torch_db"])
        rows.append(
            [
                c["name"],
                _with_interval(seconds["median"], seconds),
                f"{significant(seconds['p5'])}–{significant(seconds['p95'])}",
                seconds["runs"],
                *(significant(c[key]["median"]) if c[key] else None for key in on_device),
                *(_with_interval(r["value"], r) if (r := ratios.get(f"{t} fp32")) else None for t in TORCH),
                significant(c["start_up"]["total"]),
                f"{c['host_bytes'] / 2**20:.0f}",
                None if c["device_bytes"] is None else f"{c['device_bytes'] / 2**20:.0f}",
                psnr,
            ]
        )
    header = ["backend, precision", "median s", "p5–p95 s", "runs", *on_device.values()]
    header += ["/ torch eager fp32", "/ torch channels-last fp32", "start-up s", "host MiB", "device MiB"]
    return markdown_table([*header, "PSNR to torch dB"], rows)


def stages_table(series: Mapping[str, Any]) -> str:
    """Medians by stage of one shape."""
    fine = [c for c in series["configurations"] if c["error"] is None]
    used = [stage for stage in ("read", *STAGES, "write") if any(stage in c["stages"] for c in fine)]
    rows = [[c["name"], *(significant(c["stages"].get(stage)) for stage in used)] for c in fine]
    return markdown_table(["backend, precision", *(stage.replace("_", " ") for stage in used)], rows)


# --- rounds ---------------------------------------------------------------------------------------------------


def _precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """The precisions of a backend that this bundle has graphs for."""
    from ldp_runtime.backends.base import graph_precision
    from ldp_runtime.bundle.engines import ENGINE_PRECISION
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.registry import BACKENDS

    backend = BACKENDS[name]
    backend.available()
    if isinstance(backend, ChainBackend):
        built = {ENGINE_PRECISION, *(engine.precision for engine in bundle.manifest.engines)}
        return tuple(p for p in backend.precisions if p in built)
    graphs = bundle.manifest.graphs.values()
    return tuple(p for p in backend.precisions if all(graph_precision(p) in files for files in graphs))


def _torch_precisions(bundle: Bundle, checkpoint: Path | None) -> tuple[str, ...]:
    from benchmarks.harness.bundles import has_reference
    from benchmarks.harness.machine import describe
    from ldp_runtime.bundle.manifest import BlurMapSpec

    if bundle.manifest.blur_map != BlurMapSpec():
        raise BackendError(
            "torch is not timed on bundles of the released model: its blur map comes from patches of the image"
        )
    if not has_reference(bundle, checkpoint):
        raise BackendError(
            f"torch needs the weights of {bundle.manifest.name} as a checkpoint, and models/checkpoints has none; "
            "give it with --checkpoint"
        )
    try:
        from benchmarks import torch_chain
    except ModuleNotFoundError as error:
        raise BackendError(f"torch needs the package {error.name}; install ldp with the extra export") from error
    return torch_chain.precisions(describe()["cpu"]["features"])


def _write_pair(folder: Path, shape: tuple[int, int]) -> None:
    """Writes both views of the sample, continued by reflection or cut to a shape."""
    import numpy as np

    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import read_photo, write_photo
    from ldp_runtime.stages.geometry import reflect_indices

    for name in ("left", "right"):
        pixels = read_photo(_SAMPLE / f"{name}.png").pixels
        for axis, size in enumerate(shape):
            have = pixels.shape[axis]
            pixels = np.take(pixels, reflect_indices(have, max(size, have))[:size], axis=axis)
        write_photo(folder / f"{name}-{_size(shape)}.png", Photo(np.ascontiguousarray(pixels)))


def _add_block(
    track: _Track, bundle: Bundle, folder: Path, first: bool, threads: int | None, checkpoint: Path | None
) -> None:
    """Runs a worker and keeps its block, or the reason why there is none."""
    from benchmarks.latency.worker import Block, Spec

    size = _size(track.shape)
    spec = Spec(
        bundle=str(bundle.path),
        backend=track.contender.backend,
        precision=track.contender.precision,
        left=str(folder / f"left-{size}.png"),
        right=str(folder / f"right-{size}.png"),
        threads=threads,
        checkpoint=None if checkpoint is None else str(checkpoint.absolute()),
        warm_up=WARM_UP_SECONDS,
        seconds=BLOCK_SECONDS,
        most=MOST_RUNS,
        restored=str(_restored(folder, track.contender.name, track.shape)) if first else None,
        spawned=time.time(),
    )
    result, ended = run_spec("benchmarks.latency.worker", asdict(spec), folder)
    if result is None:
        track.error = f"the process {ended}"
    elif "error" in result:
        track.error = result["error"]
    else:
        track.blocks.append(Block(**result))


def _agreement(folder: Path, tracks: Sequence[_Track]) -> dict[tuple[str, tuple[int, int]], float]:
    """PSNR in dB between each contender's restored image and torch's in FP32, infinite where they are equal.

    Raises:
        BenchmarkError: A backend in FP32 restores another image, so that torch's weights are not the bundle's.
    """
    import numpy as np

    from ldp_runtime.images.quality import psnr

    values = {}
    for track in tracks:
        reference = _restored(folder, REFERENCE, track.shape)
        path = _restored(folder, track.contender.name, track.shape)
        if not path.is_file() or not reference.is_file():
            continue
        image = np.load(path)
        value = psnr(image, np.load(reference), data_range=float(np.iinfo(image.dtype).max))
        if track.contender.precision == "fp32" and value < SAME_WEIGHTS_DB:
            raise BenchmarkError(
                f"expected {track.contender.name} to restore what torch restores, got a PSNR of {value:.1f} dB "
                "between them: the checkpoint is not what the bundle was exported from; give the right --checkpoint"
            )
        values[track.contender.name, track.shape] = value
    return values


def _configuration(track: _Track, tracks: Sequence[_Track], psnr: float | None) -> dict[str, Any]:
    """A contender's part of the report at one shape."""
    import math

    from benchmarks.harness.timing import Ratio, ratio, summarise
    from benchmarks.latency.worker import COPIES

    contender, blocks = track.contender, track.blocks
    head = {"name": contender.name, "backend": contender.backend, "precision": contender.precision}
    if track.error is not None:
        return {**head, "gpu": False, "error": track.error}
    times = [block.seconds for block in blocks]
    ratios = {}
    for other in tracks:
        if other.shape == track.shape and other.error is None and other.contender.backend in TORCH:
            to = [block.seconds for block in other.blocks]
            ratios[other.contender.name] = asdict(Ratio(1.0, None, None) if other is track else ratio(times, to))
    files = {key: _median([block.files[key] for block in blocks]) for key in ("read", "write")}
    names = dict.fromkeys(name for block in blocks for name in block.stages)
    stages = {name: _median([v for block in blocks for v in block.stages.get(name, ())]) for name in names}
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
        "start_up": {key: _median([start[key] for start in warm]) for key in starts[0]},
        "first_start_up": starts[0],
        "host_bytes": max(block.host_bytes for block in blocks),
        "device_bytes": max((b.device_bytes for b in blocks if b.device_bytes is not None), default=None),
        "psnr_to_torch_db": psnr if psnr is not None and math.isfinite(psnr) else None,
        "equal_to_torch": psnr == math.inf,
        "blocks": [{"seconds": block.seconds, "stages": block.stages} for block in blocks],
    }


def _median(values: Sequence[float]) -> float:
    import statistics

    return statistics.median(values)


def _restored(folder: Path, name: str, shape: tuple[int, int]) -> Path:
    return folder / f"{name.replace(' ', '-')}-{_size(shape)}.npy"


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _with_interval(value: float, interval: Mapping[str, Any]) -> str:
    text = str(significant(value))
    if interval["low"] is None:
        return text
    return f"{text} ({significant(interval['low'])}–{significant(interval['high'])})"
