"""Writes a bundle as a model repository of Triton Inference Server. Imports no torch.

The model that clients call, ``ldp``, is ``ldp_runtime.triton`` in Triton's Python backend. In the variant ``python`` it
runs everything; in the others the two graphs are models of their own, ``ldp_clip`` and ``ldp_deblur``, that it asks.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime import __version__
from ldp_runtime.backends.base import PRECISIONS, graph_precision
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ENGINE_PRECISION, FLAVOURS, EngineEntry, architecture_number
from ldp_runtime.bundle.manifest import GRAPHS, MANIFEST_FILE
from ldp_runtime.bundle.trust import is_trusted
from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_write, claimed_folder
from ldp_runtime.registry import BACKENDS, SESSION_BACKENDS
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH
from ldp_runtime.stages.tiles import AUTO, OFF, check_tile
from ldp_runtime.tensors import TensorSpec
from ldp_runtime.triton import BLUR_MAP, BUNDLE_FOLDER, GRAPHS_FILE, LEFT, RESTORED, RIGHT, ServedGraph

VARIANTS = {
    "python": "one model in the Python backend that runs everything",
    "onnxruntime": "the graphs as models of the ONNX Runtime backend",
    "tensorrt": "the bundle's engines as models of the TensorRT backend",
}
"""What runs the graphs."""

MODELS = {8: "ldp", 16: "ldp_uint16"}
"""Name of the model that clients call, by the bits of its images."""

MARKER = "ldp-triton.json"
"""Says that a folder is a model repository that was written here, and of what."""

SCRIPTS = ("client.py", "serve.py")
"""Scripts that the repository comes with, copies of modules here."""

SCHEMA_VERSION = 1

_VERSION = "1"
_FLAVOUR = "tensorrt"
_README = """\
# {bundle} on Triton Inference Server

Written by `ldp-export triton`, variant `{variant}`: {what}. Models:

{models}

Clients call `{first}`:

| tensor | shape | type |
| --- | --- | --- |
| input `LEFT`, `RIGHT` | (n, h, w, 3) RGB, n pairs of one size | {bits} |
| output `RESTORED` | (n, h, w, 3) | that of the views |
| output `BLUR_MAP` | (n, h, w), in [0, 1], 1 is blurred | FP32 |

The parameter `axis` of a request is `horizontal` or, for sensors that split top and bottom, `vertical`. What is wrong
with a pair comes back as the error of its request.

## Start the server

The Python backend needs the package `ldp` {version} in its Python, 3.11 or newer. In a container of Triton:

```sh
pip install ldp-{version}-py3-none-any.whl            # from `pip wheel --no-deps .` in LDP's repository{extras}
tritonserver --model-repository=/path/to/this/folder
```

Give the container shared memory, through which images travel (`docker run --shm-size=1g`), and let HTTP take large
photos: newer servers refuse more than 64 MiB unless `--http-max-input-size` says otherwise. {trust}

With no container, on x86-64 Linux, the package `nvidia-pytriton` carries a server with the Python backend alone:

```sh
pip install ldp-{version}-py3-none-any.whl 'tritonclient[grpc,http]'
pip install --no-deps nvidia-pytriton                # it pins NumPy 1, which only its own Python code needs
python serve.py --http-port=8000 --grpc-port=8001 --metrics-port=8002
```

## Call it

```sh
pip install numpy opencv-python-headless 'tritonclient[grpc,http]'
python client.py left.png right.png -o sharp.png --blur-map blur.png                       # HTTP, port 8000
python client.py left.png right.png -o sharp.png --grpc --url localhost:8001
```

## Tune it

* `instance_group` of `{first}`: how many processes restore pairs at a time. {instances}
* `dynamic_batching`: a process takes up to {max_batch} pairs, of any sizes, from the queue. They run one after the
  other; on a GPU the copies of one overlap with the work on another. When more than `max_queue_size` requests wait,
  further ones are refused at once.
* `parameters`: precision and tiles, and for the variant `python` backend and threads, as for `ldp deblur`.
"""
_INSTANCES = {
    "python": "Each holds the graphs in memory; on a CPU give each its share of the threads (`--threads`).",
    "graphs": "They share `ldp_clip`, where windows of several pairs go together in a batch, and `ldp_deblur`.",
}
_MODEL = '''\
"""Triton's Python backend looks for the class here."""

from ldp_runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonError(LDPError):
    """A model repository cannot be written as asked."""


class Word(str):
    """The name of a constant, which stands in a config without quotes."""


Config = dict[str, Any]
"""A message of Triton's model_config.proto."""

_IMAGE_TYPES = {8: Word("TYPE_UINT8"), 16: Word("TYPE_UINT16")}
_TYPES = {"float32": Word("TYPE_FP32"), "float16": Word("TYPE_FP16")}


@dataclass(frozen=True)
class Serving:
    """How a bundle is served.

    Attributes:
        variant: A name of ``VARIANTS``.
        bits: Depths of the images, each a model of its own.
        instances: Processes of each model that clients call.
        max_batch: Pairs that one of these takes at a time, at most.
        max_delay: Microseconds that a request may wait for others to share a batch with.
        max_queue: Requests that may wait; further ones are refused at once.
        backend: With the variant "python", what runs the graphs there.
        precision: Precision of the graphs; "auto" is the backend's own, FP32 with ONNX Runtime, FP16 with TensorRT.
        threads: With the variant "python", CPU threads of a process; None leaves it to the backend.
        tile: As for ``Deblurrer.from_bundle``; with the variant "tensorrt" "auto" is what the engine takes.
        openvino: With the variant "onnxruntime", OpenVINO executes the graphs on the CPU.
        warm_up: Height and width in px of a pair that is restored before a model counts as ready.
    """

    variant: str = "python"
    bits: tuple[int, ...] = (8,)
    instances: int = 1
    max_batch: int = 8
    max_delay: int = 0
    max_queue: int = 64
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    tile: int | str = AUTO
    openvino: bool = False
    warm_up: tuple[int, int] = (256, 256)

    def check(self) -> None:
        """Checks the options by themselves and together.

        Raises:
            TritonError: One is wrong, or two do not fit together.
        """
        for name, value, choices in (
            ("variant", self.variant, tuple(VARIANTS)),
            ("backend", self.backend, ("auto", *BACKENDS)),
            ("precision", self.precision, ("auto", *PRECISIONS)),
        ):
            if value not in choices:
                raise TritonError(f"expected a {name}, one of {', '.join(choices)}, got {value!r}")
        if not self.bits or set(self.bits) - MODELS.keys():
            raise TritonError(f"expected bits, of {', '.join(map(str, MODELS))}, got {self.bits}")
        for name, number, least in (
            ("instances", self.instances, 1),
            ("pairs a batch", self.max_batch, 1),
            ("a delay in microseconds", self.max_delay, 0),
            ("requests that may wait", self.max_queue, 1),
            ("threads", 1 if self.threads is None else self.threads, 1),
            ("the sides of the warm-up in px", min(self.warm_up), 1),
        ):
            if number < least:
                raise TritonError(f"expected {name} of at least {least}, got {number}")
        if self.variant != "python" and (self.backend != "auto" or self.threads is not None):
            raise TritonError(
                f"expected a backend and threads with the variant python alone, got them with {self.variant}; leave "
                "them out, or edit instance_group and parameters of the written configs"
            )
        if self.openvino and self.variant != "onnxruntime":
            raise TritonError(f"expected OpenVINO with the variant onnxruntime, got it with {self.variant}")
        if self.variant == "onnxruntime" and self.precision == "bf16":
            raise TritonError("expected fp32 or fp16 with the variant onnxruntime, got bf16; choose fp32")
        if self.variant == "tensorrt" and self.precision not in ("auto", ENGINE_PRECISION):
            raise TritonError(f"expected {ENGINE_PRECISION}, that of engines, got {self.precision}; leave it out")

    @property
    def models(self) -> list[str]:
        """Names of the models that clients call."""
        return [MODELS[bits] for bits in dict.fromkeys(self.bits)]


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
    tile, graphs = _tile(serving, bundle), _graphs(bundle, serving)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claimed_folder(folder) as staged:
            for name, bits in zip(serving.models, dict.fromkeys(serving.bits), strict=True):
                config = _model_config(name, bits, serving, graphs, tile)
                _write_model(staged, config, bundle, serving, graphs)
            first = staged / serving.models[0] / _VERSION / BUNDLE_FOLDER
            for graph in graphs.values():
                _write_graph(staged, first, graph)
            for name in SCRIPTS:
                shutil.copyfile(Path(__file__).with_name(name), staged / name)
            names = [*serving.models, *(graph.served.model for graph in graphs.values())]
            (staged / "README.md").write_text(_readme(bundle, serving, names), encoding="utf-8")
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


# --- the models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graph:
    """A graph that is a model of its own.

    Attributes:
        served: What the model that clients call has to know of it.
        config: Its config.
        files: Where its files lie in the bundle, by their names in the version's folder.
    """

    served: ServedGraph
    config: Config
    files: dict[str, str]


def _write_model(staged: Path, config: Config, bundle: Bundle, serving: Serving, graphs: Mapping[str, _Graph]) -> None:
    """Writes a model that clients call: config, script, bundle, and which models run the graphs."""
    version = staged / config["name"] / _VERSION
    version.mkdir(parents=True)
    _write_config(version.parent, config)
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    if graphs:
        served = {kind: graph.served.to_json() for kind, graph in graphs.items()}
        (version / GRAPHS_FILE).write_text(json.dumps(served, indent=2) + "\n", encoding="utf-8")
    earlier = staged / serving.models[0] / _VERSION / BUNDLE_FOLDER
    _copy_bundle(bundle, earlier if earlier.exists() else None, version / BUNDLE_FOLDER, _copied(bundle, serving))


def _copied(bundle: Bundle, serving: Serving) -> list[EngineEntry]:
    """The engines that go along; for the variant "python" all that are there: one for another GPU need not be."""
    if serving.variant == "tensorrt":
        return [entry for engines in served_engines(bundle).values() for entry in engines.values()]
    if serving.variant == "python":
        return [entry for entry in bundle.manifest.engines if (bundle.path / entry.file).is_file()]
    return []


def _copy_bundle(bundle: Bundle, earlier: Path | None, folder: Path, engines: Sequence[EngineEntry]) -> None:
    """Copies a bundle and verifies the copy.

    Args:
        bundle: The bundle.
        earlier: A copy in the same repository, which this one shares its files with; None if this is the first.
        folder: Where to.
        engines: Those of its engines that go along.
    """
    for name in dict.fromkeys([MANIFEST_FILE, *bundle.manifest.files, *(entry.file for entry in engines)]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if earlier is None:
            shutil.copyfile(bundle.path / name, folder / name)
        else:
            os.link(earlier / name, folder / name)
    if earlier is None:
        copy = Bundle.load(folder)
        for entry in engines:
            copy.read_engine(entry)


def _model_config(name: str, bits: int, serving: Serving, graphs: Mapping[str, _Graph], tile: int | str) -> Config:
    """The config of a model that clients call."""
    image = {"data_type": _IMAGE_TYPES[bits], "dims": [-1, -1, 3]}
    parameters = {"precision": _precision(serving), "tile": str(tile)}
    if serving.variant == "python":
        parameters |= {"backend": serving.backend, "threads": str(serving.threads or 0)}
    config: Config = {
        "name": name,
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        # Sizes may differ within a batch: the model is given the requests one by one.
        "input": [{"name": view, **image, "allow_ragged_batch": True} for view in (LEFT, RIGHT)],
        "output": [
            {"name": RESTORED, **image},
            {"name": BLUR_MAP, "data_type": Word("TYPE_FP32"), "dims": [-1, -1]},
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": serving.max_delay,
            "default_queue_policy": {"max_queue_size": serving.max_queue},
        },
        # The deblurrer finds the GPU by itself; as a model of the CPU it is given its images in the host's memory.
        "instance_group": [{"count": serving.instances, "kind": Word("KIND_CPU")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in sorted(parameters.items())],
    }
    if not graphs:  # else the models that it asks may not be there yet
        shape = [*serving.warm_up, 3]
        views = {view: (_IMAGE_TYPES[bits], shape) for view in (LEFT, RIGHT)}
        config["model_warmup"] = [_warm_up(serving.warm_up, views)]
    return config


def _graphs(bundle: Bundle, serving: Serving) -> dict[str, _Graph]:
    """The graphs that are models of their own, by their kinds.

    Raises:
        LDPError: The bundle has no graphs of that precision, or no engines of them.
    """
    precision = graph_precision(_precision(serving))
    for kind in GRAPHS:
        bundle.graph(kind, precision)
    if serving.variant == "python":
        return {}
    found = {}
    for kind in GRAPHS:
        session = SESSION_BACKENDS["onnxruntime"].open(bundle.graph(kind, precision), precision)
        served = ServedGraph(f"ldp_{kind}", session.inputs, session.outputs)
        if serving.variant == "tensorrt":
            found[kind] = _engine_graph(kind, served, bundle, serving)
        else:
            found[kind] = _onnx_graph(kind, served, bundle, serving)
    return found


def _onnx_graph(kind: str, served: ServedGraph, bundle: Bundle, serving: Serving) -> _Graph:
    path = bundle.graph(kind, graph_precision(_precision(serving)))
    runner = {"backend": "onnxruntime", "default_model_filename": path.name}
    config = _graph_config(served, runner, bundle, serving, ENGINE_CLIP_BATCH)
    if serving.openvino:
        accelerator = {"name": "openvino"}
        config["optimization"] = {"execution_accelerators": {"cpu_execution_accelerator": [accelerator]}}
    graph = path.relative_to(bundle.path)
    files = [graph, *map(Path, bundle.weights[graph.as_posix()])]  # weights lie where the graph looks for them
    return _Graph(served, config, {file.relative_to(graph.parent).as_posix(): file.as_posix() for file in files})


def _engine_graph(kind: str, served: ServedGraph, bundle: Bundle, serving: Serving) -> _Graph:
    engines = served_engines(bundle)[kind]
    batch = min(entry.profile[served.inputs[0].name].max[0] for entry in engines.values())
    names = {arch: f"{kind}.{arch}.plan" for arch in engines}
    runner = {
        "platform": "tensorrt_plan",
        "default_model_filename": next(iter(names.values())),
        "cc_model_filenames": [
            {"key": f"{(number := architecture_number(arch)) // 10}.{number % 10}", "value": name}
            for arch, name in names.items()
        ],
        "instance_group": [{"count": 1, "kind": Word("KIND_GPU")}],
    }
    config = _graph_config(served, runner, bundle, serving, batch)
    return _Graph(served, config, {names[arch]: entry.file for arch, entry in engines.items()})


def _graph_config(served: ServedGraph, runner: Config, bundle: Bundle, serving: Serving, batch: int) -> Config:
    """The config of a graph.

    Args:
        served: The model.
        runner: The fields that say what runs it.
        bundle: The bundle.
        serving: How it is served.
        batch: The most windows that may be run at once, where the graph takes batches.
    """
    batched = all(isinstance(spec.shape[0], str) for spec in (*served.inputs, *served.outputs))
    config: Config = {
        "name": served.model,
        **runner,
        "max_batch_size": batch if batched else 0,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [_tensor(spec, batched) for spec in served.inputs],
        "output": [_tensor(spec, batched) for spec in served.outputs],
        "model_warmup": [_graph_warm_up(served, batched, bundle, serving)],
    }
    if batched:  # windows of several pairs, from several instances of the model that clients call, go together
        config["dynamic_batching"] = {"max_queue_delay_microseconds": serving.max_delay}
    return config


def _tensor(spec: TensorSpec, batched: bool) -> Config:
    shape = spec.shape[1:] if batched else spec.shape
    dims = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": spec.name, "data_type": _TYPES[spec.dtype.name], "dims": dims}


def _graph_warm_up(served: ServedGraph, batched: bool, bundle: Bundle, serving: Serving) -> Config:
    H, W = bundle.manifest.padding.padded_size(*serving.warm_up)
    cell = bundle.manifest.blur_cell
    sides = {"blur_logits": (H // cell, W // cell)}
    tensors = {}
    for spec in served.inputs:
        shape = spec.shape[1:] if batched else (*spec.shape[:2], *sides.get(spec.name, (H, W)))
        tensors[spec.name] = (_TYPES[spec.dtype.name], [*shape])
    return _warm_up((H, W), tensors)


def _warm_up(size: tuple[int, int], tensors: Mapping[str, tuple[Word, list[Any]]]) -> Config:
    inputs = [
        {"key": key, "value": {"data_type": dtype, "dims": dims, "random_data": True}}
        for key, (dtype, dims) in tensors.items()
    ]
    return {"name": f"{size[0]}x{size[1]}", "batch_size": 1, "inputs": inputs}


def _precision(serving: Serving) -> str:
    default = {"python": "auto", "onnxruntime": "fp32", "tensorrt": ENGINE_PRECISION}
    return default[serving.variant] if serving.precision == "auto" else serving.precision


def _tile(serving: Serving, bundle: Bundle) -> int | str:
    """The tiles of the model that clients call; engines bound them.

    Raises:
        LDPError: No tile has that size, or the engines take none of it.
    """
    manifest = bundle.manifest
    multiple = manifest.tile_multiple
    if serving.variant != "tensorrt":
        return check_tile(serving.tile, multiple)
    most = min(min(entry.profile["pair"].max[2:]) for entry in served_engines(bundle)["deblur"].values())
    if serving.tile == OFF or (isinstance(serving.tile, int) and serving.tile > most):
        raise TritonError(f"expected tiles of at most {most} px, which the engines take, got {serving.tile}")
    return check_tile(most if serving.tile == AUTO else serving.tile, multiple)


def served_engines(bundle: Bundle) -> dict[str, dict[str, EngineEntry]]:
    """The engines of the enterprise TensorRT that serve a bundle, those of its latest version, the largest of each GPU.

    Returns:
        By the graph's kind and the GPU's architecture; both kinds have the same architectures.

    Raises:
        TritonError: There are none, or one is not trusted.
    """
    fix = (
        f"build engines of a range of sizes with ldp-export engine {bundle.path} --flavour {_FLAVOUR}, on the GPU and "
        "with the TensorRT that will run them"
    )
    usable = [
        entry
        for entry in bundle.manifest.engines
        if entry.flavour == _FLAVOUR
        and entry.made_from(bundle.graph_hash(entry.kind, ENGINE_PRECISION))
        and not any(shapes.fixed for shapes in entry.profile.values())
        and (bundle.path / entry.file).is_file()
    ]
    version = max((entry.version for entry in usable), key=_version_numbers, default=None)
    found: dict[str, dict[str, EngineEntry]] = {kind: {} for kind in GRAPHS}
    for entry in sorted(usable, key=lambda entry: [math.prod(shapes.max) for shapes in entry.profile.values()]):
        if entry.version == version:
            found[entry.kind] |= dict.fromkeys(entry.targets, entry)
    both = sorted(set.intersection(*(set(engines) for engines in found.values())), key=architecture_number)
    if not both:
        have = "; ".join(map(str, bundle.manifest.engines)) or "none"
        raise TritonError(
            f"expected engines of both graphs by {FLAVOURS[_FLAVOUR]} in bundle {bundle.manifest.name!r}, got {have}; "
            + fix
        )
    chosen = {kind: {arch: engines[arch] for arch in both} for kind, engines in found.items()}
    for entry in {entry.file: entry for engines in chosen.values() for entry in engines.values()}.values():
        if not is_trusted(entry.sha256):  # Triton itself asks nobody
            raise TritonError(
                f"{bundle.path / entry.file}: this engine is native code and was neither built here nor trusted; if "
                f"you trust where it comes from, run ldp trust {bundle.path}"
            )
    return chosen


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _write_graph(staged: Path, bundle: Path, graph: _Graph) -> None:
    """Writes the model of a graph: its config and its files."""
    folder = staged / graph.served.model
    for name, source in graph.files.items():
        target = folder / _VERSION / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(bundle / source, target)
    _write_config(folder, graph.config)


# --- the text -----------------------------------------------------------------------------------------------------


def _write_config(folder: Path, config: Config) -> None:
    (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message of protocol buffers in the text format.

    Args:
        message: Values by the names of their fields: numbers, truth values, texts, ``Word``s, messages, and lists of
            these for repeated fields.
        indent: Begins each line.
    """
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_value(item)}\n")
    return "".join(lines)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value) if isinstance(value, Word) else json.dumps(value)  # which writes true, 1 and "text" as they do


def _readme(bundle: Bundle, serving: Serving, names: Sequence[str]) -> str:
    alone = serving.variant == "python"
    trust = f"ldp trust {serving.models[0]}/{_VERSION}/{BUNDLE_FOLDER}"
    return _README.format(
        bundle=bundle.manifest.name,
        variant=serving.variant,
        what=VARIANTS[serving.variant],
        models="\n".join(f"* `{name}`" for name in names),
        first=serving.models[0],
        bits=" or ".join(f"UINT{bits} for `{MODELS[bits]}`" for bits in dict.fromkeys(serving.bits)),
        version=__version__,
        extras="; on a GPU: 'ldp[rtx,cuda] @ file:///...'" if alone else "",
        trust=f"The bundle's engines run once the server's user trusts them: `{trust}`." if alone else "",
        instances=_INSTANCES["python" if alone else "graphs"],
        max_batch=serving.max_batch,
    )
