"""``python -m tests.gpu``: all of LDP that a GPU can check, in one run; ``make gpu-check``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.tables import markdown_table
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.base import Device
from ldp_runtime.cuda.device import open_device
from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.files import write_whole

EXAMPLES = """\
examples:
  python -m tests.gpu -o gpu-check.json
  python -m tests.gpu --dry-run

Takes some minutes. What the machine lacks (TensorRT-RTX, torch, CuPy, ONNX
Runtime's CUDA provider, g++) is skipped and named. The exit code is 1 if a step
failed and 2 without a GPU that can be used.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps, prints a table and writes the result.

    Returns:
        The exit code: 0 if no step failed, 1 if one did, 2 without a GPU.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description="Checks kernels, chain, CUDA graphs, device arrays, bandwidth and engines on the first GPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("gpu-check.json"), metavar="FILE", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on the host in place of a GPU, to test the check; figures mean nothing"
    )
    options = parser.parse_args(arguments)
    try:
        device = _open(options.dry_run)
    except BackendError as error:
        print(f"gpu-check: error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="ldp-gpu-") as folder:
        os.environ["LDP_CONFIG"] = str(Path(folder) / "config")  # engines built here are not trusted after this
        results = run(device, Path(folder), options.dry_run)
    report = {
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "commit": str(machine.commit()),
        "device": {"name": device.name, "arch": device.arch, "dry_run": options.dry_run},
        "machine": machine.describe(),
        "steps": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole({options.output: (json.dumps(report, indent=1) + "\n").encode()})
    print(f"\n{device.name} ({device.arch})\n\n{tables(results)}\n\nwritten: {options.output}")
    return int(any(result["verdict"] == "failed" for result in results.values()))


def _open(dry: bool) -> Device:
    if not dry:
        return open_device()
    from tests.ldp_runtime.cuda.host_device import HostDevice

    return HostDevice(pooled=True)


def run(device: Device, folder: Path, dry: bool) -> dict[str, dict[str, Any]]:
    """Runs every step, whatever becomes of the others.

    Returns:
        For each its ``verdict``, ``seconds``, and ``figures`` or the ``reason``.
    """
    from tests.gpu.steps import STEPS, Setting

    device.activate()
    setting = Setting(device, Bundle.load("ldp-nano"), folder, dry)
    return {name: judge(lambda step=step: step(setting)) for name, step in STEPS.items()}


def judge(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a step and says what became of it."""
    from tests.gpu.steps import SkippedError

    start = time.perf_counter()
    result: dict[str, Any]
    try:
        result = {"verdict": "passed", "figures": step()}
    except SkippedError as error:
        result = {"verdict": "skipped", "reason": one_line(error)}
    except Exception as error:  # whatever it is, the other steps are worth their time
        traceback.print_exc()
        result = {"verdict": "failed", "reason": f"{type(error).__name__}: {one_line(error)}"}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results for people."""
    rows = [
        (name, r["verdict"], f"{r['seconds']:.1f}", r.get("reason") or _shown(r["figures"]))
        for name, r in results.items()
    ]
    parts = [markdown_table(("step", "verdict", "s", "figures"), rows, "llrl")]
    if kernels := results.get("bandwidth", {}).get("figures", {}).get("kernels"):
        header = ("kernel", "size", "us", "GB/s", "of a copy")
        cells = [(k["kernel"], k["size"], k["us"], k["gb_s"], f"{k['of_copy']:.0%}") for k in kernels]
        parts.append(markdown_table(header, cells, "llrrr"))
    return "\n\n".join(parts)


def _shown(figures: Mapping[str, Any]) -> str:
    shown = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            shown.append(f"{name}: {_shown(value)}")
        elif not isinstance(value, list):
            shown.append(f"{name} {value}")
    return ", ".join(shown)


if __name__ == "__main__":
    sys.exit(main())
