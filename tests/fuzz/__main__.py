"""``python -m tests.fuzz``: thousands of hostile images, bundles and arrays, each of which has to end well."""

import argparse
import collections
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.harness import machine
from tests.fuzz.cases import ERROR, FINDINGS, KINDS, RESULT, draw
from tests.fuzz.harness import LIMIT, run_cases, save

PACKAGES = ("numpy", "pillow", "opencv-python-headless", "tifffile", "msgspec", "onnxruntime", "openvino")

EXAMPLES = """\
examples:
  python -m tests.fuzz --cases 20000 --jobs 2 -o fuzz
  python -m tests.fuzz --cases 500 --seed 7

Writes summary.json and summary.md to the folder, after Ctrl-C too, and each
finding with its input. The exit code is 1 if there is a finding. A case is
known by its kind and seed, which the summary names: equal seeds make equal
cases.
"""


def main() -> int:
    """Runs the cases.

    Returns:
        The exit code: 0 if every case ended well, 1 if one did not, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Feeds hostile images, bundles and arrays to the runtime; each has to end well.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=20_000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, metavar="S", help="seconds until a case is a hang (default: %(default)s)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("fuzz"), metavar="FOLDER", help="folder to write (default: fuzz)"
    )
    arguments = parser.parse_args()
    if arguments.cases < 1 or arguments.jobs < 1:
        parser.error("expected at least 1 case and 1 job")
    arguments.output.mkdir(parents=True, exist_ok=True)

    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in KINDS}
    findings: list[dict[str, Any]] = []
    start, commit = time.monotonic(), str(machine.commit())
    cases = draw(arguments.seed, arguments.cases)
    interrupted = False
    with tqdm(total=arguments.cases, unit="case", mininterval=1.0) as bar:
        try:
            for case, outcome in run_cases(cases, arguments.jobs, arguments.limit):
                counts[case.kind][outcome.detail if outcome.end == ERROR else outcome.end] += 1
                if outcome.end in FINDINGS:
                    place = save(arguments.output, case, outcome)
                    fields = {"kind": case.kind, "seed": case.seed, "end": outcome.end, "folder": place.name}
                    findings.append(fields)
                    bar.write(f"{outcome.end}: {case.kind} {case.seed}, see {place}")
                bar.update()
                bar.set_postfix(findings=len(findings), refresh=False)
        except KeyboardInterrupt:  # what ran so far is worth its summary
            interrupted = True
    summary = {
        "cases": sum(sum(ends.values()) for ends in counts.values()),
        "interrupted": interrupted,
        "seed": arguments.seed,
        "jobs": arguments.jobs,
        "limit_s": arguments.limit,
        "seconds": round(time.monotonic() - start, 1),
        "commit": commit,
        "machine": machine.describe()["summary"],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "counts": {kind: dict(sorted(ends.items())) for kind, ends in counts.items()},
        "findings": findings,
    }
    (arguments.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = markdown(summary)
    (arguments.output / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return 130 if interrupted else int(bool(findings))


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    counts: dict[str, dict[str, int]] = summary["counts"]
    ends = sorted({end for row in counts.values() for end in row} - {RESULT, *FINDINGS})
    columns = [RESULT, *ends, *FINDINGS]
    lines = [
        f"{summary['cases']} cases of seed {summary['seed']} in {summary['seconds']:.0f} s with {summary['jobs']} "
        f"processes, at commit `{summary['commit']}`, on {summary['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + ".",
        "",
        "| kind | cases | " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * (len(columns) + 1),
    ]
    rows = {**counts, "all": dict(sum((collections.Counter(row) for row in counts.values()), collections.Counter()))}
    for kind, row in rows.items():
        lines.append(f"| {kind} | {sum(row.values())} | " + " | ".join(str(row.get(c, 0)) for c in columns) + " |")
    lines += ["", f"Findings: {len(summary['findings'])}."]
    lines += [f"* {f['end']}: {f['kind']} {f['seed']}, in `{f['folder']}`" for f in summary["findings"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
