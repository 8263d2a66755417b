"""``ldp bench exports``: what other benchmarks measure, exported into the cache, several graphs at a time.

An export is the work of one thread for minutes. Whoever measures afterwards finds the graphs in LDP's cache, where they
stay until a source of the exporter changes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from benchmarks.harness.bundles import CLIP_PATCH, random_bundle
from benchmarks.harness.processes import run_module
from benchmarks.harness.results import BenchmarkError
from benchmarks.latency.bench import CONFIG_NAMES
from benchmarks.peers import PEERS
from benchmarks.peers.bench import DEFAULT_BACKENDS, choose_backends, export_peer
from benchmarks.roofline.bench import design_variants, export_variant

HELP = "Exports what the other benchmarks measure, several graphs at a time."
EXAMPLES = """\
examples:
  ldp bench exports --variants
  ldp bench exports --config small large --peer nafnet --jobs 4

Nothing is exported twice: the graphs stay in LDP's cache until the exporter
changes. The other benchmarks export what they lack by themselves, one after
the other.
"""

_JOB_MEMORY = 4 * 2**30
"""Bytes that an export takes at most, about."""


@dataclass(frozen=True)
class Job:
    """An export.

    Attributes:
        kind: "config", "peer" or "variant".
        name: Name of the network.
        detail: Of a peer its precision; of a variant, which of ``roofline.design_variants``.
    """

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        title = PEERS[self.name].title if self.kind == "peer" else f"ldp-{self.name}-random"
        return ", ".join(filter(None, [title, self.detail]))

    def run(self) -> None:
        """Exports it in this process, or finds it in the cache."""
        if self.kind == "config":
            random_bundle(self.name)
        elif self.kind == "peer":
            export_peer(PEERS[self.name], half=self.detail == "fp16")
        else:
            from ldp_export.network import CONFIGS

            export_variant(design_variants(CONFIGS[self.name])[self.detail], CLIP_PATCH)


def jobs_for(
    configs: Sequence[str],
    peers: Sequence[str],
    backends: Sequence[str] = DEFAULT_BACKENDS,
    *,
    variants: bool = False,
) -> list[Job]:
    """What there is to export, the longest first.

    Args:
        configs: Names of networks for random weights.
        peers: Names of ``PEERS``.
        backends: What runs the peers, as for ``ldp bench peers``.
        variants: Also the variants of the configs' designs, for ``ldp bench roofline``.
    """
    precisions = dict.fromkeys(["fp32", *("fp16" for _, p in choose_backends(backends) if p == "fp16")])
    found = [Job("config", name) for name in configs]
    found += [Job("peer", name, precision) for name in peers for precision in precisions]
    if variants:
        from ldp_export.network import CONFIGS

        found += [Job("variant", name, what) for name in configs for what in design_variants(CONFIGS[name])]
    return sorted(found, key=lambda job: (job.kind, job.name != "restormer"))


def run_jobs(jobs: Sequence[Job], at_once: int) -> dict[Job, float]:
    """Runs exports, each in a process of its own.

    Args:
        jobs: The exports.
        at_once: So many at a time.

    Returns:
        Seconds of each.

    Raises:
        BenchmarkError: One failed; the message has its last words. Those that had not begun are left out.
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
    code, message = run_module("benchmarks.harness.exports", job.kind, job.name, job.detail)
    if code != 0:
        raise BenchmarkError(
            f"expected {job} to be exported, got a process that ended with {code}: {message}; fix the exporter, or "
            "leave it out"
        )
    return time.monotonic() - begin


# --- the command --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--config", nargs="*", choices=CONFIG_NAMES, default=["small"], help="random weights (default: small)"
    )
    parser.add_argument("--peer", nargs="*", choices=tuple(PEERS), default=list(PEERS), help="which (default: all)")
    parser.add_argument("--variants", action="store_true", help="also the variants that ldp bench roofline compares")
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (default: as many as cores and memory allow)")


def run(arguments: argparse.Namespace) -> None:
    """Exports, and tells how long each took."""
    from benchmarks.harness.machine import describe

    if arguments.jobs is not None and arguments.jobs < 1:
        raise BenchmarkError(f"expected at least 1 job, got {arguments.jobs}")
    machine = describe()
    room = (machine["memory_bytes"] or _JOB_MEMORY) // _JOB_MEMORY
    at_once = arguments.jobs or max(min(machine["cpu"]["usable"], room), 1)
    jobs = jobs_for(arguments.config, arguments.peer, variants=arguments.variants)
    for job, seconds in run_jobs(jobs, at_once).items():
        print(f"{job}: {seconds:.0f} s")


if __name__ == "__main__":
    Job(*sys.argv[1:4]).run()
