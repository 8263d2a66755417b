"""What overlapping wins: ``ldp batch`` beside a plain loop that reads, restores and writes a pair after the other.

Both restore copies of the sample, with one deblurrer that is warm, and write the same files; they take turns, so that a
machine that slows down does so for both. The stages of the loop add up to its time; a run that overlaps them perfectly
would take as long as the longest of them, if there were cores for all.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.results import REPORTS, BenchmarkError, Report, load_text, markdown_table, save, significant
from benchmarks.latency.bench import CONFIG_NAMES, parse_shape

if TYPE_CHECKING:
    from ldp_runtime.batch.jobs import Job, Settings
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.deblurrer import Deblurrer

HELP = "Measures the pairs a second of ldp batch, and what overlapping wins."
EXAMPLES = """\
examples:
  ldp bench batch
  ldp bench batch --pairs 32 --shape 2000x3000 --io-threads 2
  ldp bench batch --config small --backend cuda --shape 4000x6000 --pairs 40

Writes batch-NAME.json and batch-NAME.md into the output folder.
"""

STAGES = ("read", "restore", "write")


@dataclass(frozen=True)
class Round:
    """One run of each over all pairs, in seconds.

    Attributes:
        loop: Of the plain loop.
        batch: Of ``ldp batch``'s runner.
        stages: Of the loop, by stage.
    """

    loop: float
    batch: float
    stages: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", metavar="NAME|DIR", help="the bundle to measure (default: ldp-nano)")
    what.add_argument("--config", choices=CONFIG_NAMES, help="random weights of this network in place of a bundle")
    parser.add_argument("--backend", default="auto", metavar="NAME[:PRECISION]", help="what runs (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the backend's own choice)")
    parser.add_argument("--io-threads", type=int, metavar="N", help="as for ldp batch")
    parser.add_argument("--pairs", type=int, default=16, metavar="N", help="copies of the sample (default: 16)")
    parser.add_argument(
        "--shape", type=parse_shape, default=(1000, 1500), metavar="HxW", help="their size in px (default: 1000x1500)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each runs (default: 3)")
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results go")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the results.

    Raises:
        BenchmarkError: A number is too small.
    """
    from benchmarks.harness.bundles import open_bundle
    from benchmarks.harness.machine import load_average
    from ldp_runtime.batch.local import default_io_threads

    for name in ("pairs", "rounds", "io_threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BenchmarkError(f"expected at least 1 for --{name.replace('_', '-')}, got {value}")
    bundle = open_bundle(arguments.bundle, arguments.config)
    backend, _, precision = arguments.backend.partition(":")
    io_threads = arguments.io_threads or default_io_threads()
    loads = [load_average()]
    rounds, ran = measure(
        bundle,
        backend,
        precision or "auto",
        threads=arguments.threads,
        io_threads=io_threads,
        pairs=arguments.pairs,
        shape=arguments.shape,
        rounds=arguments.rounds,
    )
    loads.append(load_average())
    data = {
        "ran": ran,
        "shape": list(arguments.shape),
        "pairs": arguments.pairs,
        "threads": arguments.threads,
        "io_threads": io_threads,
        "load_average": {"before": loads[0], "after": loads[1]},
        "rounds": [asdict(value) for value in rounds],
    }
    report = Report.new("batch", data, bundle)
    markdown = to_markdown(report)
    print(markdown)
    paths = save(report, arguments.output, f"batch-{bundle.manifest.name}", markdown)
    print(f"wrote {' and '.join(map(str, paths))}")


def measure(
    bundle: Bundle,
    backend: str,
    precision: str,
    *,
    threads: int | None,
    io_threads: int,
    pairs: int,
    shape: tuple[int, int],
    rounds: int,
) -> tuple[list[Round], str]:
    """Runs the loop and the batch in turns over copies of the sample.

    Args:
        bundle: What restores.
        backend: Name of a backend, or "auto".
        precision: A precision of it, or "auto".
        threads: CPU threads; None for the backend's own choice.
        io_threads: As for ``run_local``.
        pairs: Copies of the sample.
        shape: Their height and width in px.
        rounds: How often each runs.

    Returns:
        The rounds, and what ran.

    Raises:
        BenchmarkError: A pair failed, or loop and batch wrote different files.
    """
    from tqdm import tqdm

    from ldp_runtime.batch.jobs import Settings
    from ldp_runtime.batch.local import run_local
    from ldp_runtime.batch.work import Failure, make_deblurrer

    settings = Settings(
        bundle=str(bundle.path),
        backend=backend,
        precision=precision,
        threads=threads,
        tile="auto",
        axis="horizontal",
        swap=False,
        content=bundle.content,
    )
    found = []
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as name:
        folder = Path(name)
        jobs = {kind: _jobs(folder, kind, pairs, shape) for kind in ("loop", "batch")}
        deblurrer = make_deblurrer(bundle, settings)
        _loop(jobs["loop"][:1], settings, deblurrer)  # opens the graphs
        for _ in tqdm(range(rounds), disable=None, unit="round"):
            begin = time.perf_counter()
            stages = _loop(jobs["loop"], settings, deblurrer)
            loop = time.perf_counter() - begin
            begin = time.perf_counter()
            outcomes = list(run_local(jobs["batch"], settings, deblurrer, io_threads=io_threads))
            found.append(Round(loop, time.perf_counter() - begin, stages))
            if failures := [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]:
                raise BenchmarkError(f"expected {pairs} restored pairs, got a failure: {failures[0]}")
        for one, other in zip(jobs["loop"], jobs["batch"], strict=True):
            if one.output.read_bytes() != other.output.read_bytes():
                raise BenchmarkError(
                    f"expected the same {one.name} of the loop and of the batch, got two; fix ldp batch"
                )
    return found, f"{deblurrer.backend} {deblurrer.precision}"


def _jobs(folder: Path, kind: str, pairs: int, shape: tuple[int, int]) -> list[Job]:
    """Copies of the sample, made once for both kinds, and where one kind writes to."""
    from benchmarks.scaling import sample_pair
    from ldp_runtime.batch.jobs import make_jobs
    from ldp_runtime.batch.pairs import find_pairs
    from ldp_runtime.images.photo import write_pixels

    source = folder / "in"
    if not source.exists():
        source.mkdir()
        for view, pixels in zip("LR", sample_pair(shape), strict=True):
            first = source / f"0000_{view}.png"
            write_pixels(first, pixels)
            for i in range(1, pairs):
                shutil.copyfile(first, source / f"{i:04}_{view}.png")
    return make_jobs(find_pairs(source, folder / kind).pairs, folder / kind, image_format=None, map_format=None)


def _loop(jobs: Sequence[Job], settings: Settings, deblurrer: Deblurrer) -> dict[str, float]:
    """Restores one pair after the other; the seconds of each stage."""
    from ldp_runtime.batch.work import PairError, finish, read, start, write

    seconds = dict.fromkeys(STAGES, 0.0)
    for job in jobs:
        try:
            times = [time.perf_counter()]
            pair = read(job, settings)
            times.append(time.perf_counter())
            restored = finish(pair, start(deblurrer, pair))
            times.append(time.perf_counter())
            write(restored, settings)
            times.append(time.perf_counter())
        except PairError as error:
            raise BenchmarkError(f"expected a restored pair, got a failure: {error}") from error
        for stage, begin, end in zip(STAGES, times, times[1:], strict=False):
            seconds[stage] += end - begin
    return seconds


def to_markdown(report: Report) -> str:
    """The table of a report, below a title.

    Args:
        report: Of kind "batch".
    """
    from statistics import median

    data = report.data
    rounds = data["rounds"]
    pairs, (height, width) = data["pairs"], data["shape"]
    loop, batch = (median(entry[kind] for entry in rounds) for kind in ("loop", "batch"))
    stages = {stage: median(entry["stages"][stage] for entry in rounds) for stage in STAGES}
    won = median(entry["loop"] / entry["batch"] for entry in rounds)

    def row(name: str, seconds: float) -> list[str | None]:
        megapixels = pairs * height * width / 1e6
        return [name, significant(seconds), significant(pairs / seconds), significant(megapixels / seconds)]

    rows = [row("ldp batch", batch), row("one after the other", loop)]
    rows += [row(f"  {stage} alone", seconds) for stage, seconds in stages.items()]
    rows.append(row("  the longest of them", max(stages.values())))
    name = report.bundle.name if report.bundle else "the bundle"
    loads = load_text(data["load_average"])
    return "\n\n".join(
        [
            f"# ldp batch with {name}",
            f"{pairs} pairs of {width} x {height} px, 8-bit PNG, {data['ran']}; {data['io_threads']} thread(s) read "
            f"and as many write.",
            markdown_table(["", "seconds", "pairs a second", "Mpx a second"], rows),
            f"Overlapping makes it {won:.2f} times as fast: the median of {len(rounds)} round(s), each of which runs "
            f"the loop and the batch. Load average before and after: {loads}.",
        ]
    )
