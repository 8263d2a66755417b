"""The gain of overlapping: ``ldp batch`` beside a plain loop that reads, restores and writes one pair after the other.

Both restore copies of the sample, with one warm deblurrer, and write the same files; they alternate, so that other load
on the machine affects both alike. The stages of the loop add up to its time; with cores for all, perfect overlap would
take as long as the longest of them.
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

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.tables import load_text, markdown_table, significant

if TYPE_CHECKING:
    from ldp_runtime.batch.jobs import Job, Settings
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.deblurrer import Deblurrer

EXAMPLES = """\
examples:
  python -m benchmarks batch
  python -m benchmarks batch --pairs 32 --shape 2000x3000 --io-threads 2
  python -m benchmarks batch --config small --backend cuda --shape 4000x6000 --pairs 40

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
    options.add_bundle(parser)
    options.add_backend(parser)
    options.add_threads(parser)
    parser.add_argument("--io-threads", type=int, metavar="N", help="see ldp batch")
    parser.add_argument("--pairs", type=int, default=16, metavar="N", help="copies of the sample (default: 16)")
    options.add_shape(parser, (1000, 1500))
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each runs (default: 3)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the results.

    Raises:
        BenchmarkError: A number is too small.
    """
    from benchmarks.harness.bundles import open_bundle
    from ldp_runtime.batch.local import default_io_threads

    options.check_positive(arguments, "pairs", "rounds", "io_threads")
    bundle = open_bundle(arguments.bundle, arguments.config)
    backend, precision = options.split_backend(arguments.backend)
    io_threads = arguments.io_threads or default_io_threads()
    with watch_load() as load:
        rounds, ran = measure(
            bundle,
            backend,
            precision,
            threads=arguments.threads,
            io_threads=io_threads,
            pairs=arguments.pairs,
            shape=arguments.shape,
            rounds=arguments.rounds,
        )
    data = {
        "ran": ran,
        "shape": list(arguments.shape),
        "pairs": arguments.pairs,
        "threads": arguments.threads,
        "io_threads": io_threads,
        "load_average": load,
        "rounds": [asdict(value) for value in rounds],
    }
    report = Report.new("batch", data, bundle)
    publish(report, to_markdown(report), arguments.output)


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
    """Runs the loop and the batch alternately over copies of the sample.

    Args:
        bundle: The bundle.
        backend: Name of a backend, or "auto".
        precision: A precision of it, or "auto".
        threads: CPU threads; None for the backend's own choice.
        io_threads: See ``run_local``.
        pairs: Copies of the sample.
        shape: Their height and width in px.
        rounds: How often each runs.

    Returns:
        The rounds, and the backend with its precision.

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
    """Jobs of one kind over copies of the sample, which both kinds share."""
    from benchmarks.harness.sample import sample_pair
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
    gain = median(entry["loop"] / entry["batch"] for entry in rounds)

    def row(name: str, seconds: float) -> list[str | None]:
        megapixels = pairs * height * width / 1e6
        return [name, significant(seconds), significant(pairs / seconds), significant(megapixels / seconds)]

    rows = [row("ldp batch", batch), row("one after the other", loop)]
    rows += [row(f"  {stage} alone", seconds) for stage, seconds in stages.items()]
    rows.append(row("  the longest of them", max(stages.values())))
    loads = load_text(data["load_average"])
    return "\n\n".join(
        [
            f"# ldp batch with {report.name}",
            f"{pairs} pairs of {width} x {height} px, 8-bit PNG, {data['ran']}; {data['io_threads']} thread(s) read "
            "and as many write.",
            markdown_table(["", "seconds", "pairs per second", "Mpx per second"], rows),
            f"Overlapping makes it {gain:.2f} times as fast: the median of {len(rounds)} round(s), each of which runs "
            f"the loop and the batch. Load average before and after: {loads}.",
        ]
    )
