"""The paper's Figure 1 on this machine: every network and ours on the same pair and the same backend, in one run.

Each measurement is a process of its own, so that its peak memory is its own too. Those of a round alternate, in a new
order each time, so that other load on the machine affects all alike. The weights of most are random: time does not
depend on them, and accuracy is quoted from the LDP paper; it is measured, on real pairs, for bundles with trained
weights. A run that was killed goes on.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figure1.contenders import CONTENDERS, Contender, choose
from benchmarks.figure1.graphs import export_network
from benchmarks.figure1.plot import plot
from benchmarks.figure1.score import score_bundles
from benchmarks.figure1.store import Record, Store
from benchmarks.figure1.summary import summarise_all
from benchmarks.figure1.tables import markdown
from benchmarks.figure1.worker import MethodSpec
from benchmarks.harness import options
from benchmarks.harness.machine import load_average
from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.harness.tables import size_text
from benchmarks.latency.worker import Block, Timing
from ldp_export.network.published import PUBLISHED
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.find import find_bundle
from ldp_runtime.commands.options import parse_size

EXAMPLES = """\
examples:
  python -m benchmarks figure1
  python -m benchmarks figure1 --shape 320x480 --backend torch:fp32
  python -m benchmarks figure1 --bundle ldp-nano bundles/restormer --pairs photos

Without --shape the size is the largest of 1120x1680, 560x840, 320x480 and
160x240 at which all rounds take at most --minutes, judged by one run of
Restormer. What is measured is kept until the sources change: a run that was
killed goes on, one that had ended prints again, --anew starts over. A method
that fails or takes more than --most-seconds stands in the table with its reason.

--pairs scores the bundles with trained weights on photographs of your own, as
`ldp-export evaluate BUNDLE --data pairs=FOLDER` does.

Writes figure1.json, figure1.md, figure1.png and figure1.svg into the output folder.
"""

SHAPES = ((1120, 1680), (560, 840), (320, 480), (160, 240))
"""Sizes to choose from, the largest first."""

PROBE = "restormer"
"""Of the networks that work at the size of the pair, the one that takes longest."""

SHARE = 3.0
"""About the time of all methods but K3DN beside Restormer's, whatever the size."""

K3DN_SHARE = 30.0
"""About the time of K3DN, which works at 1152x1792, beside Restormer's at 160x240."""

_SECONDS = 2.0
_MOST = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--bundle", nargs="+", default=["ldp-nano"], metavar="NAME|DIR", help="bundles (default: ldp-nano)"
    )
    parser.add_argument(
        "--network", nargs="*", choices=tuple(CONTENDERS), default=list(CONTENDERS), help="which (default: all)"
    )
    parser.add_argument(
        "--backend", default="auto", metavar="NAME[:PRECISION]", help="torch, auto or a backend (default: auto)"
    )
    parser.add_argument("--shape", type=parse_size, metavar="HxW", help="size of the pair in px")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes for each (default: 3)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, metavar="N", help="for the choice of a size (default: %(default)g)"
    )
    parser.add_argument(
        "--most-seconds", type=float, default=600.0, metavar="N", help="limit of one process (default: %(default)g)"
    )
    parser.add_argument("--anew", action="store_true", help="forget what is measured already")
    parser.add_argument(
        "--pairs", type=Path, metavar="DIR|CSV", help="real pairs with targets, to score the bundles on"
    )
    options.add_threads(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the results and the figure."""
    options.check_positive(arguments, "rounds", "minutes", "most_seconds", "threads")
    bundles = [Bundle.load(find_bundle(name)) for name in arguments.bundle]
    backend, precision = choose_backend(arguments.backend, bf16=all(bundle.manifest.bf16 for bundle in bundles))
    contenders = choose(arguments.network, bundles)
    scores = {} if arguments.pairs is None else score_bundles(bundles, arguments.pairs, arguments.threads)
    bench = Bench(
        {contender.name: contender for contender in contenders},
        backend,
        precision,
        arguments.threads,
        arguments.most_seconds,
        {bundle.manifest.name: bundle.content for bundle in bundles},
        arguments.anew,
    )
    size = arguments.shape or bench.choose_size(arguments.rounds, 60 * arguments.minutes)
    store = bench.measure(size, arguments.rounds)
    if not any(store.blocks(name) for name in bench.contenders):
        raise BenchmarkError(f"nothing could be measured: {store.error(contenders[0].name)}")
    settings = {"backend": backend, "precision": precision, "size": list(size), "threads": arguments.threads}
    data = {**settings, **summarise_all(contenders, store, scores)}
    plot(data, arguments.output / "figure1")
    publish(Report.new("figure1", data, bundles[0]), markdown(data), arguments.output, "figure1")


def choose_backend(asked: str, *, bf16: bool = True) -> tuple[str, str]:
    """Backend and precision of ``NAME`` or ``NAME:PRECISION``; "auto" is the runtime's own choice.

    Only backends that open graphs count: published networks have no engines.

    Args:
        asked: The option.
        bf16: Whether that choice may be bf16: not where one of the bundles would not run in it by itself.

    Raises:
        LDPError: The backend or precision does not work here.
    """
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.registry import BACKENDS, select

    engines = {name: "it runs engines" for name, backend in BACKENDS.items() if isinstance(backend, ChainBackend)}
    graphs = [name for name in BACKENDS if name not in engines]
    name, _, precision = asked.partition(":")
    if name == "torch":
        if (precision or "fp32") not in ("fp32", "bf16", "fp16"):
            raise BenchmarkError(f"expected a precision of torch, one of fp32, bf16, fp16, got {precision!r}")
        return "torch", precision or "fp32"
    if name not in ("auto", *graphs):
        raise BenchmarkError(f"expected a backend, one of torch, auto, {', '.join(graphs)}, got {name!r}")
    backend = select(name, precision or "auto", bf16=bf16, failed=engines).backend
    return backend.name, backend.resolve(precision or "auto", bf16=bf16)


class Bench:
    """Times methods on one backend."""

    def __init__(
        self,
        contenders: dict[str, Contender],
        backend: str,
        precision: str,
        threads: int | None = None,
        most_seconds: float = 600.0,
        contents: dict[str, str] | None = None,
        anew: bool = False,
    ) -> None:
        """Prepares.

        Args:
            contenders: The methods by name.
            backend: "torch" or a backend that opens graphs.
            precision: Its precision.
            threads: CPU threads, or None for each backend's own choice.
            most_seconds: Limit of one process.
            contents: ``Bundle.content`` of the bundles, by name.
            anew: Forget what is measured already.
        """
        self.contenders = contenders
        self._timing = (backend, precision)
        self._threads, self._most_seconds, self._contents, self._anew = threads, most_seconds, contents or {}, anew

    def choose_size(self, rounds: int, seconds: float) -> tuple[int, int]:
        """The largest of ``SHAPES`` at which all rounds take about so many seconds; the smallest if none does."""
        smallest = SHAPES[-1]
        store = self._run(smallest, 1, {PROBE: CONTENDERS[PROBE]})
        if not (blocks := store.blocks(PROBE)):
            raise BenchmarkError(f"{PROBE} failed at {size_text(smallest)} px: {store.error(PROBE)}; give --shape")
        once, start = blocks[0].seconds[0], sum(blocks[0].start_up.values())
        for size in SHAPES:
            work = once * (SHARE * math.prod(size) / math.prod(smallest) + K3DN_SHARE)
            if rounds * (len(self.contenders) * start + work) <= seconds:
                return size
        return smallest

    def measure(self, size: tuple[int, int], rounds: int) -> Store:
        """Measures every method once a round, unless it has been measured in that round before or failed.

        Args:
            size: ``(h, w)`` in px.
            rounds: How many rounds.
        """
        return self._run(size, rounds, self.contenders)

    def _run(self, size: tuple[int, int], rounds: int, contenders: dict[str, Contender]) -> Store:
        from tqdm import tqdm

        store = self._store(size)
        self._anew = False
        with (
            tempfile.TemporaryDirectory(prefix="ldp-bench-") as name,
            tqdm(total=rounds * len(contenders), unit="run", disable=None, file=sys.stderr) as bar,
        ):
            folder = Path(name)
            write_pair(folder, size)
            for number in range(rounds):
                order = list(contenders.values())
                random.Random(number).shuffle(order)
                for contender in order:
                    bar.set_postfix_str(f"round {number + 1}, {contender.name}, {size_text(size)}")
                    if not store.done(contender.name, number):
                        store.add(contender.name, number, self._block(contender, size, folder))
                    bar.update()
        return store

    def _store(self, size: tuple[int, int]) -> Store:
        settings: dict[str, Any] = {"size": list(size), "timing": list(self._timing), "threads": self._threads}
        return Store.open(settings | {"bundles": self._contents}, anew=self._anew)

    def _block(self, contender: Contender, size: tuple[int, int], folder: Path) -> Record:
        load = [load_average()]
        try:
            kind, path = self._source(contender)
            left, right = map(str, pair_files(folder, size))
            timing = Timing(*self._timing, left, right, self._threads, _SECONDS, _MOST, time.time())
            spec = MethodSpec(timing, kind, contender.name, path)
            fields = run_spec("benchmarks.figure1.worker", spec, folder, most_seconds=self._most_seconds)
            return Record(Block(**fields), None, [*load, load_average()])
        except BenchmarkError as error:
            return Record(None, str(error), [*load, load_average()])

    def _source(self, contender: Contender) -> tuple[str, str]:
        """What the worker opens: a kind, and the path of a graph or bundle; exports what is not there."""
        from benchmarks.harness.bundles import random_bundle

        if contender.kind == "bundle":
            return "bundle", contender.bundle
        if self._timing[0] == "torch" or contender.kind == "classical":
            return contender.kind, ""
        if contender.kind == "config":
            return "bundle", str(random_bundle(contender.name))
        return "published", str(export_network(PUBLISHED[contender.name], half=self._timing[1] == "fp16"))
