"""``ldp selftest``: checks that this installation computes what the bundle was exported to compute."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ldp_runtime.command import CheckFailedError
from ldp_runtime.commands.info import environment, environment_lines
from ldp_runtime.commands.options import add_bundle_argument, add_json_argument

if TYPE_CHECKING:
    from ldp_runtime.selftest import Outcome

HELP = "Checks each backend against the values that the bundle keeps."
EXAMPLES = """\
examples:
  ldp selftest
  ldp selftest --bundle my-bundle --backend openvino
  ldp selftest --json

Restores a small pair that the bundle keeps, on each backend that can work here
and in each of its precisions, and compares with the values that the bundle was
exported with. Put all of its output into a bug report. The exit code is 1 if a
backend fails. Differences are of a full scale of 1.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.registry import BACKENDS

    add_json_argument(parser)
    add_bundle_argument(parser)
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="test this one alone (default: all that work here)")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from dataclasses import asdict

    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.cache import cache_folder
    from ldp_runtime.selftest import run_selftest

    bundle = Bundle.load(arguments.bundle)
    test = run_selftest(bundle, arguments.backend)
    cache = cache_folder()
    fields: dict[str, Any] = {
        "passed": not test.failures,
        "bundle": {
            "name": bundle.manifest.name,
            "path": str(bundle.path),
            "created": bundle.manifest.created,
            "content": bundle.content,
            "keeps_values": test.kept,
        },
        "results": [asdict(outcome) for outcome in test.outcomes],
        "not_available": dict(test.absent),
        **environment(),
        "cache": None if cache is None else str(cache),
    }
    if arguments.json:
        print(json.dumps(fields, indent=2, allow_nan=False))
    else:
        print("\n".join(_lines(fields, test.outcomes)))
    if test.failures:
        names = ", ".join(f"{outcome.backend} in {outcome.precision}" for outcome in test.failures)
        raise CheckFailedError(
            f"expected the values of bundle {bundle.manifest.name!r}, got others from {names}; if it persists after "
            f"the cache folder {cache} was removed, report all of the output and choose another backend or precision"
        )


def _lines(fields: dict[str, Any], outcomes: tuple[Outcome, ...]) -> list[str]:
    bundle = fields["bundle"]
    lines = [
        f"bundle     {bundle['name']} of {bundle['created']}, content {bundle['content']}",
        f"path       {bundle['path']}",
    ]
    lines += environment_lines(fields)
    lines.append(f"cache      {fields['cache'] or 'none'}")
    if not bundle["keeps_values"]:
        lines.append(
            "sample     none in this bundle, so the backends are compared with each other; to store one, export it "
            f"again or run ldp-export selftest {bundle['path']}"
        )
    lines.append("")
    lines.append(
        f"{'backend':22}{'precision':11}{'open s':>8}{'run s':>8}{'largest':>10}{'mean':>10}{'PSNR dB':>9}"
        f"{'blur map':>10}  verdict"
    )
    for outcome in outcomes:
        compared = outcome.max_difference is not None
        decibel = "equal" if compared and outcome.psnr_db is None else _number(outcome.psnr_db, ".1f")
        lines.append(
            f"{outcome.backend:22}{outcome.precision:11}{_number(outcome.open_seconds, '.2f'):>8}"
            f"{_number(outcome.run_seconds, '.3f'):>8}{_number(outcome.max_difference, '.1e'):>10}"
            f"{_number(outcome.mean_difference, '.1e'):>10}{decibel:>9}"
            f"{_number(outcome.blur_difference, '.1e'):>10}  {outcome.verdict}"
            + (f": {outcome.reason}" if outcome.reason else "")
        )
    lines += [f"{name:22}not available: {reason}" for name, reason in fields["not_available"].items()]
    lines.append("")
    lines.append("all passed" if fields["passed"] else "FAILED")
    return lines


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
