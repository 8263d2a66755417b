"""Writes a bundle as a model repository of Triton Inference Server. Imports no torch.

The model that clients call, ``ldp``, is ``ldp_runtime.triton`` in Triton's Python backend. In the variant ``python`` it
runs everything; in the others the two graphs are models of their own, ``ldp_clip`` and ``ldp_deblur``, that it asks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldp_export.triton.config_text import Config, to_text
from ldp_export.triton.engines import served_engines
from ldp_export.triton.models import Graph, choose_tile, find_graphs, model_config
from ldp_export.triton.readme import to_readme
from ldp_export.triton.serving import VERSION, Serving, TritonError
from ldp_runtime import __version__
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import EngineFile
from ldp_runtime.bundle.manifest import MANIFEST_FILE
from ldp_runtime.files import cannot_write, claimed_folder
from ldp_runtime.triton import BUNDLE_FOLDER, GRAPHS_FILE

MARKER = "ldp-triton.json"
"""Says that a folder is a model repository that was written here, and of what."""

SCRIPTS = ("client.py", "serve.py")
"""Modules here that the repository comes with."""

SCHEMA_VERSION = 1

_MODEL = '''\
"""Triton's Python backend looks for the class here."""

from ldp_runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(bundle: Bundle, folder: Path, serving: Serving) -> list[str]:
    """Writes a model repository; what was in the folder before is replaced when all of it is ready.

    Args:
        bundle: What to serve; its files are copied and verified again.
        folder: Where; new, empty or written by this function before, which is for the caller to check.
        serving: How.

    Returns:
        The names of the models.

    Raises:
        LDPError: The options do not fit together or to the bundle, an engine is missing or not trusted, or the folder
            cannot be written.
    """
    serving.check()
    tile, graphs = choose_tile(serving, bundle), find_graphs(bundle, serving)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claimed_folder(folder) as staged:
            for name, bits in zip(serving.models, dict.fromkeys(serving.bits), strict=True):
                config = model_config(name, bits, serving, graphs, tile, blur_map=bundle.manifest.reads_blur_map)
                _write_model(staged, config, bundle, serving, graphs)
            first = staged / serving.models[0] / VERSION / BUNDLE_FOLDER
            for graph in graphs.values():
                _write_graph(staged, first, graph)
            for name in SCRIPTS:
                shutil.copyfile(Path(__file__).with_name(name), staged / name)
            names = [*serving.models, *(graph.served.model for graph in graphs.values())]
            (staged / "README.md").write_text(to_readme(bundle, serving, names), encoding="utf-8")
            record = {
                "schema": "ldp-triton",
                "schema_version": SCHEMA_VERSION,
                "ldp": __version__,
                "variant": serving.variant,
                "bundle": {"name": bundle.manifest.name, "content": bundle.content},
                "models": names,
            }
            (staged / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            _put_in_place(staged, folder)
    except OSError as error:
        raise TritonError(cannot_write(folder, error)) from error
    return names


def _put_in_place(staged: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staged, folder)
        return
    old = staged.with_suffix(".old")
    os.rename(folder, old)
    try:
        os.rename(staged, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)


def _write_model(staged: Path, config: Config, bundle: Bundle, serving: Serving, graphs: Mapping[str, Graph]) -> None:
    """Writes a model that clients call: config, script, bundle, and which models run the graphs."""
    version = staged / config["name"] / VERSION
    version.mkdir(parents=True)
    _write_config(version.parent, config)
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    if graphs:
        served = {kind: graph.served.to_json() for kind, graph in graphs.items()}
        (version / GRAPHS_FILE).write_text(json.dumps(served, indent=2) + "\n", encoding="utf-8")
    earlier = staged / serving.models[0] / VERSION / BUNDLE_FOLDER
    _copy_bundle(bundle, earlier if earlier.exists() else None, version / BUNDLE_FOLDER, _copied(bundle, serving))


def _copied(bundle: Bundle, serving: Serving) -> list[EngineFile]:
    """The engines that go along; for the variant "python" all that are there: one for another GPU need not be."""
    if serving.variant == "tensorrt":
        return [
            file for engines in served_engines(bundle).values() for entry in engines.values() for file in entry.files
        ]
    if serving.variant == "python":
        files = (file for entry in bundle.manifest.engines for file in entry.files)
        return [file for file in files if (bundle.path / file.file).is_file()]
    return []


def _copy_bundle(bundle: Bundle, earlier: Path | None, folder: Path, engines: Sequence[EngineFile]) -> None:
    """Copies a bundle and verifies the copy.

    Args:
        bundle: The bundle.
        earlier: A copy in the same repository, which this one shares its files with; None if this is the first.
        folder: Where to.
        engines: Those of its engines that go along.
    """
    for name in dict.fromkeys([MANIFEST_FILE, *bundle.manifest.files, *(engine.file for engine in engines)]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if earlier is None:
            shutil.copyfile(bundle.path / name, folder / name)
        else:
            os.link(earlier / name, folder / name)
    if earlier is None:
        copy = Bundle.load(folder)
        for engine in engines:
            copy.read_engine(engine)


def _write_graph(staged: Path, bundle: Path, graph: Graph) -> None:
    """Writes the model of a graph: its config and its files."""
    folder = staged / graph.served.model
    for name, source in graph.files.items():
        target = folder / VERSION / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(bundle / source, target)
    _write_config(folder, graph.config)


def _write_config(folder: Path, config: Config) -> None:
    (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
