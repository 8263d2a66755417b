"""``ldp info``: lists versions, CPU, backends and bundles."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.commands.options import add_json_argument
from ldp_runtime.errors import LDPError, counted

if TYPE_CHECKING:
    from ldp_runtime.bundle.engines import EngineEntry

HELP = "Lists versions, CPU, backends and bundles."
_FEATURES = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16"]
EXAMPLES = """\
examples:
  ldp info
  ldp info --json

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    add_json_argument(parser)


def environment() -> dict[str, Any]:
    """Versions, system and CPU."""
    import platform
    from importlib import metadata

    versions = {"ldp": __version__, "python": platform.python_version()}
    for package in ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "pillow", "tifffile"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "system": platform.platform(), "cpu": _cpu()}


def environment_lines(fields: dict[str, Any]) -> list[str]:
    """The fields of ``environment`` as lines."""
    cpu = fields["cpu"]
    return [
        "versions   " + ", ".join(f"{name} {version}" for name, version in fields["versions"].items()),
        f"system     {fields['system']}",
        f"cpu        {cpu['name']}, {counted(cpu['threads'], 'thread')}; {', '.join(cpu['features']) or 'unknown'}",
    ]


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.bundle.bundle import read_manifest
    from ldp_runtime.bundle.find import list_bundles, search_folders
    from ldp_runtime.registry import BACKENDS, select

    backends: dict[str, dict[str, Any]] = {}
    for name, backend in BACKENDS.items():
        try:
            backend.available()
            backends[name] = {
                "available": True,
                "device": backend.describe(),
                "precisions": list(backend.precisions),
            }
        except LDPError as error:
            backends[name] = {"available": False, "reason": str(error)}
    try:
        auto = select()[1]
    except LDPError as error:
        auto = str(error)

    bundles: dict[str, dict[str, Any]] = {}
    for name, folder in list_bundles().items():
        try:
            manifest = read_manifest(folder)
        except LDPError as error:
            bundles[name] = {"path": str(folder), "error": str(error)}
        else:
            bundles[name] = {
                "path": str(folder),
                "created": manifest.created,
                "clip": manifest.clip.architecture if manifest.clip else None,
                "blur_map": manifest.reads_blur_map,
                "bf16": manifest.bf16,
                "origin": manifest.to_json().get("origin"),
                "graphs": sorted({p for graphs in manifest.graphs.values() for p in graphs}),
                "engines": [_engine(entry, folder) for entry in manifest.engines],
            }

    fields = {
        **environment(),
        "backends": backends,
        "auto": auto,
        "bundles": bundles,
        "bundle_folders": [str(folder) for folder in search_folders()],
    }
    if arguments.json:
        print(json.dumps(fields, indent=2))
        return
    print("\n".join(environment_lines(fields)))
    print("backends")
    for name, found in backends.items():
        if found["available"]:
            print(f"  {name:21}{found['device']}; {', '.join(found['precisions'])}")
        else:
            print(f"  {name:21}not available: {found['reason']}")
    print(f"  {'auto':21}{auto}")
    print("bundles" if bundles else f"bundles    none in {', '.join(fields['bundle_folders'])}")
    for name, found in bundles.items():
        note = f": {found['error']}" if "error" in found else "" if found["blur_map"] else "; no blur map"
        slow = "" if found.get("bf16", True) else "; auto takes fp32 on CPUs"
        print(f"  {name:21}{found['path']}{note}{slow}")
        for line in _engine_lines(found.get("engines", [])):
            print(f"  {'':21}{line}")
        if origin := found.get("origin"):
            files = ", ".join(f"{file['name']} (SHA-256 {file['sha256']})" for file in origin["files"])
            print(f"  {'':21}{origin['kind']} from {files}; {origin['licence']}; {origin['sharing']}")
            print(f"  {'':21}cite: {origin['cite']}")


def _engine(entry: EngineEntry, folder: Path) -> dict[str, Any]:
    """What an engine is for, and whether it may run here; its files are not read."""
    from ldp_runtime.bundle.trust import is_trusted

    try:
        state = "trusted" if all(is_trusted(file.sha256) for file in entry.files) else "untrusted"
    except LDPError:  # others can write to the record
        state = "untrusted"
    if not all((folder / file.file).is_file() for file in entry.files):
        state = "missing"
    fields = ("kind", "flavour", "version", "precision", "targets")
    return {**{name: getattr(entry, name) for name in fields}, "state": state}


def _engine_lines(engines: list[dict[str, Any]]) -> list[str]:
    """A line for all that differ in the graph alone."""
    from ldp_runtime.bundle.engines import FLAVOURS

    kinds: dict[tuple[str, str], list[str]] = {}
    for engine in engines:
        name = f"{FLAVOURS[engine['flavour']]} {engine['version']} for {', '.join(engine['targets'])}"
        kinds.setdefault((f"{name} in {engine['precision']}", engine["state"]), []).append(engine["kind"])
    return [f"{', '.join(sorted({*those}))} by {name}, {state}" for (name, state), those in kinds.items()]


def _cpu() -> dict[str, Any]:
    """Name, threads, and the features that matter to the backends, as far as they are known."""
    import platform

    name, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    return {"name": name, "threads": os.cpu_count(), "features": [flag for flag in _FEATURES if flag in flags]}
