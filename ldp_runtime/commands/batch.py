"""``ldp batch``: restores a folder of pairs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.command import CheckFailedError
from ldp_runtime.commands.options import (
    add_backend_arguments,
    add_bundle_argument,
    add_check_arguments,
    add_json_argument,
    add_tile_argument,
    add_view_arguments,
    positive_int,
    require_blur_map,
)
from ldp_runtime.errors import ImageError, LDPError, counted

if TYPE_CHECKING:
    from ldp_runtime.batch.jobs import Job, Settings
    from ldp_runtime.batch.pairs import Pair
    from ldp_runtime.batch.report import Tally
    from ldp_runtime.batch.run import Plan
    from ldp_runtime.batch.work import Outcome
    from ldp_runtime.bundle.bundle import Bundle

HELP = "Restores a folder or a list of pairs; continues where an earlier run ended."
EXAMPLES = """\
examples:
  ldp batch photos/ restored/
  ldp batch photos/ restored/ --dry-run
  ldp batch pairs.csv restored/ --format tiff --blur-map png
  ldp batch test/ restored/ --target test/target
  ldp batch card/ restored/
  ldp batch /share/photos/ /share/restored/ --ray head:6379

INPUT is a folder, in which pairs are found by name, with all the folders in it:
  NAME_L.png and NAME_R.png           -> NAME.png
  NAME left.png and NAME right.png, NAME_left.pgm and NAME_right.pgm -> NAME.*
  left/NAME.png and right/NAME.png    -> NAME.png
  inputL/NAME.png, inputR/NAME.png    -> NAME.png
  test_l/NAME_L.png, test_r/NAME_R.png, targets in test_c/ (DPD-blur) -> test/NAME.png
  NAME/left.png and NAME/right.png    -> NAME.png
  NAME-1.tif (sum), NAME-2.tif (view) -> NAME.tif (DPRSplit)
  NAME.CR2, NAME.CR3, NAME.DNG: dual-pixel raw photos -> NAME.tif
  NAME.tif with two pages, the left view first -> NAME.tif
or a CSV with the columns left,right and, where wanted, output and target, names
relative to it; right is empty for a file that holds both views.

With targets, of --target or of the CSV, a table of PSNR and SSIM follows, of the
center views (the mean of both views) and of the restored images. Those of
--target have the names of the pairs, or, as in DPD-blur, only their order.

Reading, computing and writing overlap. The same command again skips finished
pairs: those whose views, options and outputs have not changed, by their hashes
in OUTPUT/.ldp-batch.jsonl. A run may be killed at any time; no file is ever
half-written. Pairs that fail are listed at the end and in OUTPUT/ldp-batch.json,
and the others are restored: then the exit code is 1.

With --ray, workers on many machines read and write the files themselves: INPUT,
OUTPUT and the bundle lie on storage that all share under the same paths, and LDP
is installed on each. There is one worker per GPU, or per machine without one.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("input", metavar="INPUT", type=Path, help="folder with pairs, or a CSV that lists them")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write to; made if missing")
    add_json_argument(parser)
    add_bundle_argument(parser)
    add_backend_arguments(parser)
    add_view_arguments(parser)
    add_tile_argument(parser)
    add_check_arguments(parser)
    parser.add_argument(
        "--format",
        choices=("png", "tiff", "jpg"),
        help="format of the restored images (default: the left view's)",
    )
    parser.add_argument(
        "--blur-map", choices=("png", "npy"), help="also write each blur map, NAME_blur, as a picture or as numbers"
    )
    parser.add_argument(
        "--target", type=Path, metavar="FOLDER", help="folder of the sharp photos; prints PSNR and SSIM against them"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="restore every pair again, and replace files that no run wrote"
    )
    parser.add_argument(
        "--verify", action="store_true", help="hash every finished file, even if its size and time have not changed"
    )
    parser.add_argument(
        "--skip-unpaired", action="store_true", help="leave out images that belong to no pair (default: an error)"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="list the pairs to restore, and do nothing")
    parser.add_argument("--log", type=Path, metavar="PATH", help="the log (default: ldp-batch.json in OUTPUT)")
    parser.add_argument(
        "--io-threads",
        type=positive_int,
        metavar="N",
        help="threads that read, and as many that write; each keeps a pair (default: half of the CPUs, up to 4)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="work on a Ray cluster: host:port of its head, auto on one of its machines, or local for one here",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="with --ray: workers (default: one per GPU, or per machine)",
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``.

    Raises:
        CheckFailedError: Some pairs failed.
        KeyboardInterrupt: With its progress.
    """
    from ldp_runtime.batch.jobs import make_jobs
    from ldp_runtime.batch.run import Plan
    from ldp_runtime.bundle.bundle import Bundle

    if arguments.workers is not None and arguments.ray is None:
        raise ImageError("expected --ray ADDRESS|local with --workers, got none; name a cluster, or omit --workers")
    if arguments.blur_map is not None:
        require_blur_map(arguments.bundle)
    pairs = _pairs(arguments)
    jobs = make_jobs(
        pairs,
        arguments.output,
        image_format=arguments.format,
        map_format=arguments.blur_map,
        targets=_targets(pairs, arguments.target),
    )
    bundle = Bundle.load(arguments.bundle)
    plan = Plan.make(
        jobs, _settings(arguments, bundle), arguments.output, overwrite=arguments.overwrite, verify=arguments.verify
    )
    if arguments.dry_run:
        _print_plan(plan, arguments)
    else:
        _run(plan, bundle, arguments)


def _run(plan: Plan, bundle: Bundle, arguments: argparse.Namespace) -> None:
    from ldp_runtime.batch.journal import OutputError
    from ldp_runtime.batch.report import Progress, Tally, failure_lines, quality_table
    from ldp_runtime.batch.run import LOG_FILE, follow, write_log
    from ldp_runtime.files import check_writable

    log = arguments.log or arguments.output / LOG_FILE
    end: LDPError | KeyboardInterrupt | None = None
    with plan.journal as journal:
        check_writable(log)
        journal.remove_leftovers(plan.jobs)
        journal.claim(plan.todo)
        tally = Tally(len(plan.jobs), len(plan.jobs) - len(plan.todo))
        todo = set(plan.todo)
        for job in plan.jobs:
            if job not in todo and job.target is not None and (quality := journal.quality(job.name)) is not None:
                tally.quality[job.name] = quality
        outcomes = _outcomes(plan, bundle, arguments)
        progress = Progress(tally, quiet=arguments.quiet)
        try:
            follow(plan, outcomes, progress)
        except KeyboardInterrupt:
            end = KeyboardInterrupt(_progress_text(tally))
        except LDPError as error:
            end = type(error)(f"{error}; {_progress_text(tally)}")
        finally:
            outcomes.close()
            progress.close()
        journal.remove_leftovers(plan.jobs)
    fields = {
        "version": __version__,
        "bundle": bundle.manifest.name,
        "ended": "done" if end is None else "interrupted" if isinstance(end, KeyboardInterrupt) else "stopped",
        "error": str(end) if isinstance(end, LDPError) else None,
        "settings": vars(plan.settings),
        **tally.fields(),
    }
    try:
        write_log(log, fields)
    except OutputError as error:
        end = end or error
    for line in failure_lines(tally.failures):
        print(f"ldp: {line}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({**fields, "log": str(log)}, indent=2, allow_nan=False))
    elif not arguments.quiet:
        print("\n".join([*(quality_table(tally.quality) if tally.quality else ()), tally.summary(), f"log in {log}"]))
    if end is not None:
        raise end
    if tally.failures:
        raise CheckFailedError(
            f"{len(tally.failures)} of {counted(len(plan.jobs), 'pair')}, listed in {log}; fix them and run the "
            "command again"
        )


def _outcomes(plan: Plan, bundle: Bundle, arguments: argparse.Namespace) -> Generator[Outcome]:
    if not plan.todo:
        return
    if arguments.ray is not None:
        from ldp_runtime.batch.cluster import run_ray

        yield from run_ray(plan.todo, plan.settings, arguments.ray, workers=arguments.workers)
        return
    from ldp_runtime.batch.local import run_local
    from ldp_runtime.batch.work import make_deblurrer

    deblurrer = make_deblurrer(bundle, plan.settings)
    yield from run_local(plan.todo, plan.settings, deblurrer, io_threads=arguments.io_threads)


def _progress_text(tally: Tally) -> str:
    return (
        f"{tally.skipped + tally.restored} of {counted(tally.pairs, 'pair')} done and no file half-written; run the "
        "same command again to continue"
    )


def _targets(pairs: tuple[Pair, ...], folder: Path | None) -> dict[PurePosixPath, Path]:
    from ldp_runtime.batch.targets import match_targets

    if folder is None:
        return {pair.name: pair.target for pair in pairs if pair.target is not None}
    targets = match_targets(pairs, folder)
    if len(targets) < len(pairs):
        without = counted(len(pairs) - len(targets), "pair")
        print(f"ldp: warning: {without} without a target in {folder}", file=sys.stderr)
    return targets


def _pairs(arguments: argparse.Namespace) -> tuple[Pair, ...]:
    from ldp_runtime.batch.pairs import PairingError, check_listing, find_pairs, read_csv

    source = arguments.input
    if source.is_dir():
        if os.path.realpath(source) == os.path.realpath(arguments.output):
            raise PairingError(f"{arguments.output} is the folder of the views; choose another output folder")
        if arguments.target is not None and os.path.realpath(source) == os.path.realpath(arguments.target):
            raise PairingError(
                f"{arguments.target} is the folder of the views; expected one of targets alone, each with its pair's "
                "name: move them there, or list pairs and targets in a CSV with the column target"
            )
        listing = find_pairs(source, arguments.output, targets=arguments.target, side_by_side=arguments.side_by_side)
        check_listing(source, listing, skip_unpaired=arguments.skip_unpaired)
        if listing.alone:
            print(f"ldp: warning: left out {counted(len(listing.alone), 'image')} of no pair", file=sys.stderr)
        return listing.pairs
    if not source.exists():
        raise PairingError(f"{source} does not exist; give a folder with pairs or a CSV that lists them")
    if source.suffix.lower() != ".csv":
        raise PairingError(f"expected a folder or a .csv, got {source}; for one pair there is ldp deblur")
    pairs = read_csv(source, side_by_side=arguments.side_by_side)
    if not pairs:
        raise PairingError(f"{source} lists no pairs; expected a line a pair below the first")
    return pairs


def _settings(arguments: argparse.Namespace, bundle: Bundle) -> Settings:
    from ldp_runtime.batch.jobs import Settings

    return Settings(
        bundle=str(bundle.path),
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        tile=arguments.tile,
        check=arguments.check,
        scale=arguments.scale,
        axis=arguments.axis,
        swap=arguments.swap,
        side_by_side=arguments.side_by_side,
        content=bundle.content,
    )


def _print_plan(plan: Plan, arguments: argparse.Namespace) -> None:
    todo = set(plan.todo)

    def fields(job: Job) -> dict[str, Any]:
        outputs = [str(path) for path in job.outputs]
        views = {"left": str(job.left), "right": None if job.right is None else str(job.right)}
        return {**views, "outputs": outputs, "done": job not in todo}

    if arguments.json:
        print(json.dumps([fields(job) for job in plan.jobs], indent=2))
        return
    for job in plan.jobs:
        views = " + ".join(str(path) for path in (job.left, job.right) if path is not None)
        print(f"{'restore' if job in todo else 'done':8} {views} -> {' + '.join(map(str, job.outputs))}")
    print(f"{counted(len(plan.jobs), 'pair')}: {len(plan.todo)} to restore, {len(plan.jobs) - len(plan.todo)} done")
