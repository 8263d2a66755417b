"""The configs of Triton's models: those that clients call, and the graphs that are models of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_export.triton.config_text import Config, Word
from ldp_export.triton.engines import served_engines
from ldp_export.triton.serving import Serving, TritonError
from ldp_runtime.backends.base import graph_precision
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ENGINE_PRECISION, architecture_number
from ldp_runtime.registry import SESSION_BACKENDS
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH
from ldp_runtime.stages.tiles import AUTO, OFF, check_tile
from ldp_runtime.tensors import TensorSpec
from ldp_runtime.triton import BLUR_MAP, LEFT, RESTORED, RIGHT, WARM_UP, ServedGraph

_IMAGE_TYPES = {8: Word("TYPE_UINT8"), 16: Word("TYPE_UINT16")}
_TYPES = {"float32": Word("TYPE_FP32"), "float16": Word("TYPE_FP16")}


@dataclass(frozen=True)
class Graph:
    """A graph that is a model of its own.

    Attributes:
        served: What the model that clients call has to know of it.
        config: Its config.
        files: Where its files lie in the bundle, by their names in the version's folder.
    """

    served: ServedGraph
    config: Config
    files: dict[str, str]


def model_config(
    name: str, bits: int, serving: Serving, graphs: Mapping[str, Graph], tile: int | str, *, blur_map: bool
) -> Config:
    """The config of a model that clients call; ``blur_map`` is an output of it."""
    image = {"data_type": _IMAGE_TYPES[bits], "dims": [-1, -1, 3]}
    parameters = {"precision": _precision(serving), "tile": str(tile)}
    if serving.pair_check != OFF:
        parameters |= {"check": serving.pair_check, "scale": serving.scale}
    if serving.variant == "python":
        parameters |= {"backend": serving.backend, "threads": str(serving.threads or 0)}
    if not graphs:  # else the models that it asks may not be there yet
        parameters[WARM_UP] = json.dumps(serving.warm_up)
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        # Sizes may differ within a batch: the model is given the requests one by one.
        "input": [{"name": view, **image, "allow_ragged_batch": True} for view in (LEFT, RIGHT)],
        "output": [
            {"name": RESTORED, **image},
            *([{"name": BLUR_MAP, "data_type": Word("TYPE_FP32"), "dims": [-1, -1]}] if blur_map else []),
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": serving.max_delay,
            "default_queue_policy": {"max_queue_size": serving.max_queue},
        },
        # The deblurrer finds the GPU by itself; as a model of the CPU it is given its images in the host's memory.
        "instance_group": [{"count": serving.instances, "kind": Word("KIND_CPU")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in sorted(parameters.items())],
    }


def find_graphs(bundle: Bundle, serving: Serving) -> dict[str, Graph]:
    """The graphs that are models of their own, by their kinds.

    Raises:
        LDPError: The bundle has no graphs of that precision, or no engines of them.
    """
    precision = graph_precision(_precision(serving))
    for kind in bundle.manifest.graphs:
        bundle.graph(kind, precision)
    if serving.variant == "python":
        return {}
    found = {}
    for kind in bundle.manifest.graphs:
        session = SESSION_BACKENDS["onnxruntime"].open(bundle.graph(kind, precision), precision)
        served = ServedGraph(f"ldp_{kind}", session.inputs, session.outputs)
        if serving.variant == "tensorrt":
            found[kind] = _engine_graph(kind, served, bundle, serving)
        else:
            found[kind] = _onnx_graph(kind, served, bundle, serving)
    return found


def _onnx_graph(kind: str, served: ServedGraph, bundle: Bundle, serving: Serving) -> Graph:
    path = bundle.graph(kind, graph_precision(_precision(serving)))
    runner = {"backend": "onnxruntime", "default_model_filename": path.name}
    config = _graph_config(served, runner, bundle, serving, ENGINE_CLIP_BATCH)
    if serving.openvino:
        accelerator = {"name": "openvino"}
        config["optimization"] = {"execution_accelerators": {"cpu_execution_accelerator": [accelerator]}}
    graph = path.relative_to(bundle.path)
    files = [graph, *map(Path, bundle.weights[graph.as_posix()])]  # weights lie where the graph looks for them
    return Graph(served, config, {file.relative_to(graph.parent).as_posix(): file.as_posix() for file in files})


def _engine_graph(kind: str, served: ServedGraph, bundle: Bundle, serving: Serving) -> Graph:
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
    return Graph(served, config, {names[arch]: entry.file for arch, entry in engines.items()})


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


def choose_tile(serving: Serving, bundle: Bundle) -> int | str:
    """The tiles of the model that clients call; engines bound them.

    Raises:
        LDPError: No tile has that size, or the engines take none of it.
    """
    manifest = bundle.manifest
    rule = manifest.tile_multiple, manifest.tile_halo
    if serving.variant != "tensorrt":
        return check_tile(serving.tile, *rule)
    most = min(min(entry.profile["pair"].max[2:]) for entry in served_engines(bundle)["deblur"].values())
    if serving.tile == OFF or (isinstance(serving.tile, int) and serving.tile > most):
        raise TritonError(f"expected tiles of at most {most} px, which the engines take, got {serving.tile}")
    return check_tile(most if serving.tile == AUTO else serving.tile, *rule)
