"""Faults while commands run: kills at random moments, full disks, Ctrl-C; nothing may be lost or half-written.

Every command runs for real, on small inputs, in a process of its own (``tests.faults.harness``). After each fault its
output folder is checked, and the same command runs again, which must succeed and leave no temporary file.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import options
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.tables import markdown_table
from ldp_runtime.command import CheckFailedError

if TYPE_CHECKING:
    import numpy as np

    from tests.faults.harness import Ending, Server
    from tests.faults.scenarios import Scenario

EXAMPLES = """\
examples:
  python -m benchmarks reliability
  python -m benchmarks reliability --kills 500 --seed 1
  python -m benchmarks reliability --kills 8 --light

Writes reliability.json and reliability.md into the output folder, with a line
each from fuzz.json and service.json where they are there. The exit code is 1 if
anything was lost, half-written or left behind.
"""

SHARES = {
    "ldp deblur": 15,
    "ldp blur-map": 7,
    "ldp-export simulate": 8,
    "ldp-export data render": 8,
    "ldp-export onnx": 6,
    "ldp-export train": 6,
}
"""Shares of the kills by command; those that start torch take longer."""

DISK_SIZES = (0, 1000, 4000)
"""Most bytes of a file on the full disk."""

INTERRUPTS = 3

KINDS = ("kills", "steps", "full_disk", "interrupts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="kills at random moments (default: 50)")
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N", help="kills between two file operations (default: 20)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="commands at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--light", action="store_true", help="leave out the commands that need torch")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs everything and writes the report.

    Raises:
        BenchmarkError: A command fails without a fault.
        CheckFailedError: Something was lost, half-written or left behind.
    """
    if arguments.kills < 0 or arguments.steps < 0 or arguments.jobs < 1:
        raise BenchmarkError(
            f"expected counts of at least 0 and at least 1 job, got {arguments.kills}, {arguments.steps} and "
            f"{arguments.jobs}"
        )
    with tempfile.TemporaryDirectory(prefix="ldp-reliability-") as folder:
        counts = arguments.kills, arguments.steps, arguments.seed
        data = measure(Path(folder), *counts, light=arguments.light, jobs=arguments.jobs, say=_say)
    report = Report.new("reliability", {**data, "others": read_others(arguments.output)})
    publish(report, to_markdown(report), arguments.output)
    if problems := all_problems(data):
        raise CheckFailedError(f"{len(problems)} problems, the first: {problems[0]}")


def measure(
    work: Path, kills: int, steps: int, seed: int, *, light: bool, jobs: int, say: Callable[[str], object]
) -> dict[str, Any]:
    """Provokes the faults.

    Args:
        work: An empty folder.
        kills: Kills at random moments, of all commands together.
        steps: Kills between two file operations, of all commands together.
        seed: Of the moments.
        light: Without the commands that need torch.
        jobs: Commands at a time.
        say: Gets a line about each run.

    Returns:
        The report's data: counts and problems by kind of fault and command.
    """
    import numpy as np

    from tests.faults import harness

    rng = np.random.default_rng(seed)
    scenarios = _scenarios(work, light)
    server = harness.Server(torch=not light)
    _clean(server, scenarios[0], work)  # starts the server, which takes longer than a command
    clean = {scenario.name: _clean(server, scenario, work) for scenario in scenarios}
    numbers = iter(range(10**9))

    def folder() -> Path:
        return work / f"run-{next(numbers)}"

    data: dict[str, Any] = {"seed": seed}
    runs: list[tuple[str, Scenario, str, Callable[[], dict[str, Any]]]] = []

    def plan(kind: str, scenario: Scenario, what: str, provoke: Callable[..., dict[str, Any]], *given: Any) -> None:
        runs.append((kind, scenario, what, functools.partial(provoke, server, scenario, folder(), *given)))

    for scenario, kill_count, step_count in zip(
        scenarios, _shared(kills, scenarios), _shared(steps, scenarios), strict=True
    ):
        ending = clean[scenario.name]
        operations = ending.operations or 1
        for i in range(kill_count):
            moment = float(rng.uniform(0, ending.seconds))
            kill = functools.partial(harness.kill_and_recover, old=i % 2 == 1)
            plan("kills", scenario, f"kill after {moment:.2f} s", kill, harness.Fault("kill", seconds=moment))
        for i, at in enumerate(_some(rng, operations, step_count)):
            kill = functools.partial(harness.kill_and_recover, old=i % 2 == 0)
            what = f"kill at file operation {at} of {operations}"
            plan("steps", scenario, what, kill, harness.Fault("kill", operation=at))
        for i, size in enumerate(DISK_SIZES):
            full = functools.partial(harness.full_disk, old=i % 2 == 0)
            plan("full_disk", scenario, f"a disk for files of {size} bytes", full, size)
        for at in _some(rng, operations, INTERRUPTS):
            plan("interrupts", scenario, f"Ctrl-C at file operation {at}", harness.interrupt, at)

    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(lambda run: run[3](), runs)
        for number, ((kind, scenario, what, _), outcome) in enumerate(zip(runs, outcomes, strict=True), 1):
            results.setdefault((kind, scenario.name), []).append(outcome)
            say(f"{number}/{len(runs)} {scenario.name}: {what}, {_state(outcome)}")
    for kind in KINDS:
        data[kind] = {scenario.name: _counts(results.get((kind, scenario.name), [])) for scenario in scenarios}
    for name, ending in clean.items():
        data["steps"][name]["operations"] = ending.operations
    return data


def read_others(folder: Path) -> dict[str, str]:
    """Sentences on the fuzzing and the service's load test, by the name of the page with all counts.

    Args:
        folder: It may have ``fuzz.json``, the summary of ``python -m tests.fuzz``, and the result ``service.json``.

    Raises:
        BenchmarkError: One of them has another form.
    """
    found = {}
    fuzz, service = folder / "fuzz.json", folder / "service.json"
    try:
        if fuzz.is_file():
            summary = json.loads(fuzz.read_text(encoding="utf-8"))
            found["fuzzing"] = (
                f"Fuzzing: {summary['cases']} hostile photos, bundles and arrays, {len(summary['findings'])} findings"
            )
        if service.is_file():
            parts = Report.read(service).data["parts"]
            statuses, overload = parts["malformed"]["statuses"], parts["overload"]
            slow = [parts[name] for name in ("slow heads", "slow bodies", "half-open")]
            found["service"] = (
                f"The service: of {parts['malformed']['forms']} malformed forms "
                f"{sum(count for status, count in statuses.items() if status >= '500')} were answered with 5xx; "
                f"{overload['clients']} clients on a queue for fewer were served {overload['statuses'].get('200', 0)} "
                f"times and refused with 429 {overload['statuses'].get('429', 0)} times; of "
                f"{sum(part['connections'] for part in slow)} slow or half-open connections "
                f"{sum(part['left'] for part in slow)} were left"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"expected results of the fuzzing and of the service in {folder}, got {error!r}"
        ) from error
    return found


def all_problems(data: dict[str, Any]) -> list[str]:
    """Every problem of every fault, in words."""
    return [f"{name}: {text}" for kind in KINDS for name, counts in data[kind].items() for text in counts["problems"]]


def to_markdown(report: Report) -> str:
    """The page."""
    data = report.data
    kills, steps = data["kills"], data["steps"]
    killed = sum(counts["killed"] for counts in kills.values())
    total = sum(counts["runs"] for counts in kills.values())
    problems = all_problems(dict(data))
    verdict = "Nothing was lost, half-written or left behind." if not problems else f"{len(problems)} problems, below."
    parts = [
        "# Reliability",
        f"{total} kills (SIGKILL) at random moments of a command's work, of which {killed} were before it was done, "
        f"and {sum(counts['runs'] for counts in steps.values())} between two of its file operations. In every other "
        "run the outputs of an earlier one existed. After each kill every output had to be absent, old or whole, and "
        f"the same command had to succeed. {verdict}",
        markdown_table(
            ("command", "kills", "in time", "at a step", "steps", "temporary left, most", "problems"),
            [
                (
                    name,
                    counts["runs"],
                    counts["killed"],
                    steps[name]["runs"],
                    steps[name]["operations"],
                    max(counts["temporary"], steps[name]["temporary"]),
                    len(counts["problems"]) + len(steps[name]["problems"]),
                )
                for name, counts in kills.items()
            ],
        ),
        "Temporary files that a kill leaves (`.NAME.N.tmp`, `.NAME.new`) have to be gone after the next run of the "
        f"command. For a full disk, files could have at most {', '.join(map(str, DISK_SIZES))} bytes: a command that "
        "fails has to do so with exit code 2, one line and no temporary file. Ctrl-C at a file operation: exit "
        "code 130, whole outputs, no temporary file.",
        markdown_table(
            ("command", "full disk, runs", "failed cleanly", "problems", "Ctrl-C, runs", "problems"),
            [
                (
                    name,
                    counts["runs"],
                    counts["failed"],
                    len(counts["problems"]),
                    data["interrupts"][name]["runs"],
                    len(data["interrupts"][name]["problems"]),
                )
                for name, counts in data["full_disk"].items()
            ],
        ),
    ]
    if problems:
        parts += ["## Problems", "\n".join(f"- {problem}" for problem in problems)]
    if data["others"]:
        parts += ["\n".join(f"- {text} ([all counts]({name}.md))." for name, text in data["others"].items())]
    return "\n\n".join(parts)


def _scenarios(work: Path, light: bool) -> list[Scenario]:
    from tests.faults.scenarios import data_scenarios, export_scenario, runtime_scenarios, training_scenario
    from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

    scenarios = runtime_scenarios(work, make_tiny_bundle(work)) + data_scenarios(work)
    if not light:
        from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint

        checkpoint = make_tiny_checkpoint(work / "checkpoint")
        scenarios += [export_scenario(checkpoint), training_scenario(work, checkpoint)]
    return scenarios


def _clean(server: Server, scenario: Scenario, work: Path) -> Ending:
    from tests.faults import harness

    out = harness.fresh(work / f"clean-{scenario.name.replace(' ', '-')}")
    ending = server.run(scenario, out)
    if ending.code != 0 or scenario.complete(out):
        raise BenchmarkError(
            f"{scenario.name}: expected exit code 0 and its outputs without any fault, got {ending.code}: "
            f"{ending.stderr[-300:].strip()} {'; '.join(scenario.complete(out))}"
        )
    return ending


def _shared(count: int, scenarios: Sequence[Scenario]) -> list[int]:
    """A count split among commands in the ratio of ``SHARES``."""
    shares = [SHARES[scenario.name] for scenario in scenarios]
    bounds = [round(count * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    return [after - before for before, after in itertools.pairwise(bounds)]


def _some(rng: np.random.Generator, operations: int, count: int) -> list[int]:
    """Random file operations of a command, in order."""
    return sorted(int(at) for at in rng.choice(operations, size=min(count, operations), replace=False))


def _say(line: str) -> None:
    print(line, flush=True)


def _counts(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "runs": len(results),
        "problems": [problem for result in results for problem in result["problems"]],
    }
    for key in ("killed", "failed"):
        if any(key in result for result in results) or not results:
            counts[key] = sum(result[key] for result in results)
    if any("temporary" in result for result in results) or not results:
        counts["temporary"] = max((result["temporary"] for result in results), default=0)
    return counts


def _state(result: dict[str, Any]) -> str:
    return "fine" if not result["problems"] else "; ".join(result["problems"])
