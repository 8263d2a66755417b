"""Exports the graphs of the other benchmarks into the cache, several at a time.

An export keeps one thread busy for minutes. The graphs stay in LDP's cache until a source of the exporter changes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from benchmarks.figure1.bench import choose_backend
from benchmarks.figure1.graphs import export_network
from benchmarks.harness.bundles import random_bundle
from benchmarks.harness.options import check_positive
from benchmarks.harness.processes import run_module
from benchmarks.harness.results import BenchmarkError
from ldp_export.commands.onnx import CONFIG_NAMES
from ldp_export.network.published import PUBLISHED

EXAMPLES = """\
examples:
  python -m benchmarks exports
  python -m benchmarks exports --config small large --network nafnet --jobs 4

Nothing is exported twice: the graphs stay in LDP's cache until the exporter
changes. The other benchmarks export missing graphs themselves, one by one.
"""

_JOB_MEMORY = 4 * 2**30
"""About the most bytes of an export."""


@dataclass(frozen=True)
class Job:
    """An export.

    Attributes:
        kind: "config" or "published".
        name: Name of the network.
        detail: The precision of a published one.
    """

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        title = PUBLISHED[self.name].title if self.kind == "published" else f"ldp-{self.name}-random"
        return ", ".join(filter(None, [title, self.detail]))

    def run(self) -> None:
        """Exports it in this process, unless the cache has it."""
        if self.kind == "config":
            random_bundle(self.name)
        else:
            export_network(PUBLISHED[self.name], half=self.detail == "fp16")


def jobs_for(configs: Sequence[str], networks: Sequence[str], backend: str = "auto") -> list[Job]:
    """The exports, the longest first.

    Args:
        configs: Names of networks of ours, for random weights.
        networks: Names of ``PUBLISHED``.
        backend: What runs the published networks, see ``choose_backend``.
    """
    precision = "fp16" if choose_backend(backend)[1] == "fp16" else "fp32"
    found = [Job("config", name) for name in configs]
    found += [Job("published", name, precision) for name in networks]
    return sorted(found, key=lambda job: (job.kind, job.name != "restormer"))


def run_jobs(jobs: Sequence[Job], at_once: int) -> dict[Job, float]:
    """Runs exports, each in a process of its own.

    Args:
        jobs: The exports.
        at_once: How many at a time.

    Returns:
        Seconds of each.

    Raises:
        BenchmarkError: One failed; the message has its last line. Those that had not begun are cancelled.
    """
    from tqdm import tqdm

    seconds: dict[Job, float] = {}
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(_run_process, job): job for job in jobs}
        try:
            for future in tqdm(as_completed(futures), "export", len(futures), disable=None, file=sys.stderr):
                seconds[futures[future]] = future.result()
        except BenchmarkError:
            pool.shutdown(cancel_futures=True)
            raise
    return seconds


def _run_process(job: Job) -> float:
    begin = time.monotonic()
    code, message = run_module("benchmarks.exports", job.kind, job.name, job.detail)
    if code != 0:
        raise BenchmarkError(
            f"expected {job} to be exported, got a process that ended with {code}: {message}; fix the exporter, or "
            "skip it"
        )
    return time.monotonic() - begin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--config", nargs="*", choices=CONFIG_NAMES, default=["small"], help="random weights (default: small)"
    )
    parser.add_argument(
        "--network", nargs="*", choices=tuple(PUBLISHED), default=list(PUBLISHED), help="which (default: all)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="exports at a time (default: as many as cores and memory allow)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Exports, and prints the seconds of each."""
    from benchmarks.harness.machine import describe

    check_positive(arguments, "jobs")
    machine = describe()
    room = (machine["memory_bytes"] or _JOB_MEMORY) // _JOB_MEMORY
    at_once = arguments.jobs or max(min(machine["cpu"]["usable"], room), 1)
    jobs = jobs_for(arguments.config, arguments.network)
    for job, seconds in run_jobs(jobs, at_once).items():
        print(f"{job}: {seconds:.0f} s")


if __name__ == "__main__":
    Job(*sys.argv[1:4]).run()
