"""A bundle as a model of Triton Inference Server's Python backend; ``ldp-export triton`` writes what it is served from.

The model is a ``Deblurrer``. Either it runs the graphs itself, or, where ``graphs.json`` lies beside it, it asks other
models of the same server to run them (Triton calls that business logic scripting, BLS).
"""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.backends.base import Backend, Session, SessionBackend, graph_precision
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.chain import in_flight
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, LDPError, NumericsError, one_line
from ldp_runtime.result import PendingResult, Result
from ldp_runtime.stages.pixels import Image
from ldp_runtime.tensors import Array, TensorSpec

LEFT, RIGHT = "LEFT", "RIGHT"
"""Inputs: ``(n, h, w, 3)`` uint8 or uint16 RGB, n pairs of one size."""

RESTORED, BLUR_MAP = "RESTORED", "BLUR_MAP"
"""Outputs: ``(n, h, w, 3)`` in the dtype of the inputs, and ``(n, h, w)`` float32 in [0, 1]."""

WARM_UP = "warm_up"
"""A parameter of the model's config: ``[h, w]`` of pairs that it makes itself ready for."""

AXIS = "axis"
"""A parameter of the request, one of ``chain.AXES``; without it the disparity is horizontal."""

CHECK = "check"
"""A parameter of the request, one of ``modes.MODES``; without it the model's own check is taken."""

BUNDLE_FOLDER = "bundle"
GRAPHS_FILE = "graphs.json"


@dataclass(frozen=True)
class ServedGraph:
    """A graph of the bundle that is a model of the server.

    Attributes:
        model: Name of that model.
        inputs: What the graph takes.
        outputs: What it gives.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        sides = {
            side: [[spec.name, list(spec.shape), spec.dtype.name] for spec in specs]
            for side, specs in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        return {"model": self.model, **sides}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ServedGraph:
        """The inverse of ``to_json``."""
        inputs, outputs = (
            tuple(TensorSpec(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in value[side])
            for side in ("inputs", "outputs")
        )
        return cls(value["model"], inputs, outputs)


class ServedGraphs(SessionBackend):
    """Runs a bundle's graphs as models of the server that this process belongs to."""

    name = "triton"

    def __init__(self, graphs: Mapping[Path, ServedGraph], precision: str) -> None:
        """Takes the models by the graph's file, and the precision that they run in."""
        self._graphs, self._precision = graphs, precision

    def available(self) -> None:
        """See ``Backend``."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return (self._precision,)

    def describe(self) -> str:
        """See ``Backend``."""
        return f"models {', '.join(graph.model for graph in self._graphs.values())} of this Triton server"

    def open_impl(self, path: Path, precision: str, threads: int | None, content: str | None) -> Session:
        """See ``Backend``."""
        return ServedSession(self._graphs[path])


class ServedSession(Session):
    """A graph that another model of the server runs."""

    def __init__(self, graph: ServedGraph) -> None:
        """Takes what the other model is."""
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._model = graph.model

    def run_impl(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """See ``Session``."""
        pb = _utils()
        request = pb.InferenceRequest(
            model_name=self._model,
            requested_output_names=[spec.name for spec in self.outputs],
            inputs=[_tensor(name, array) for name, array in feeds.items()],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise BackendError(f"model {self._model} failed: {one_line(RuntimeError(response.error().message()))}")
        # The server takes its memory back with the response.
        return {tensor.name(): _array(tensor).copy() for tensor in response.output_tensors()}


class TritonPythonModel:
    """What the Python backend calls; the names of the class and its methods are Triton's."""

    _deblurrer: Deblurrer

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the bundle of this version of the model.

        Args:
            args: What Triton passes: ``model_repository`` is the model's folder, ``model_config`` its config as JSON.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        try:
            self._deblurrer = make_deblurrer(folder, parameters)
            if WARM_UP in parameters:
                dtype = next(value["data_type"] for value in config["input"] if value["name"] == LEFT)
                self._deblurrer.warm_up([_size(parameters[WARM_UP])], dtype.removeprefix("TYPE_").lower())
        except LDPError as error:
            raise _utils().TritonModelException(str(error)) from error
        _utils().Logger.log_info(f"{args['model_name']}: {self._deblurrer.reason}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Restores the pairs of some requests, and answers each with its images or its error."""
        jobs = [_Job.from_request(request) for request in requests]
        outcomes = iter(restore(self._deblurrer, [pair for job in jobs for pair in job.pairs]))
        return [self._answer(job, list(itertools.islice(outcomes, len(job.pairs)))) for job in jobs]

    def _answer(self, job: _Job, outcomes: Sequence[Result | LDPError]) -> Any:
        pb = _utils()
        results = []
        for outcome in outcomes:
            if isinstance(outcome, LDPError):
                code = pb.TritonError.INTERNAL if isinstance(outcome, NumericsError) else pb.TritonError.INVALID_ARG
                return pb.InferenceResponse(error=pb.TritonError(str(outcome), code))
            results.append(outcome)
        for note in dict.fromkeys(note for result in results for note in result.notes):
            pb.Logger.log_warn(note)
        tensors = []
        if RESTORED in job.wanted:
            tensors.append(_tensor(RESTORED, np.stack([result.restored for result in results])))
        if BLUR_MAP in job.wanted:
            tensors.append(_tensor(BLUR_MAP, np.stack([result.blur_map for result in results])))
        return pb.InferenceResponse(output_tensors=tensors)


def _size(text: str) -> tuple[int, int]:
    try:
        h, w = (int(side) for side in json.loads(text))
    except (TypeError, ValueError) as error:
        raise BackendError(f"expected the parameter {WARM_UP} as [height, width], got {text!r}") from error
    return h, w


def make_deblurrer(folder: Path, parameters: Mapping[str, str]) -> Deblurrer:
    """The deblurrer of a version of a model.

    Args:
        folder: It holds the bundle, and the graphs' models where others run them.
        parameters: Of the model's config: ``backend``, ``precision``, ``threads`` (0 leaves it to the backend),
            ``tile``, ``check`` and ``scale``, as for ``Deblurrer.from_bundle``; each may be missing.

    Raises:
        LDPError: The bundle is damaged, or a parameter is wrong.
    """
    bundle = Bundle.load(folder / BUNDLE_FOLDER)
    precision = parameters.get("precision", "auto")
    backend: str | Backend = parameters.get("backend", "auto")
    if (folder / GRAPHS_FILE).is_file():
        value = json.loads((folder / GRAPHS_FILE).read_bytes())
        graphs = {
            bundle.graph(kind, graph_precision(precision)): ServedGraph.from_json(graph)
            for kind, graph in value.items()
        }
        backend = ServedGraphs(graphs, precision)
    threads, tile = parameters.get("threads", "0"), parameters.get("tile", "auto")
    if not threads.isdecimal():
        raise BackendError(f"expected the parameter threads as a number, got {threads!r}; 0 leaves it to the backend")
    return Deblurrer(
        bundle,
        backend=backend,
        precision=precision,
        threads=int(threads) or None,
        tile=int(tile) if tile.isdecimal() else tile,
        check=parameters.get("check", "off"),
        scale=parameters.get("scale", "auto"),
    )


Pair = tuple[Image, Image, str, str | None]
"""Left and right view ``(h, w, 3)``, the axis of the disparity, and what the check does (None: the deblurrer's)."""


def restore(deblurrer: Deblurrer, pairs: Sequence[Pair]) -> list[Result | LDPError]:
    """Restores pairs so that their copies overlap where they can; what is wrong with one leaves the others alone.

    Args:
        deblurrer: What restores them.
        pairs: The pairs; sizes and axes may differ.

    Returns:
        For each pair its result or its error.
    """

    def start(pair: Pair) -> PendingResult:
        left, right, axis, check = pair
        try:
            return deblurrer.start(left, right, axis=axis, check=check)
        except LDPError as error:
            return PendingResult.failed(error)

    outcomes: list[Result | LDPError] = []
    for _, pending in in_flight(pairs, start):
        try:
            outcomes.append(pending.result())
        except LDPError as error:
            outcomes.append(error)
    return outcomes


@dataclass(frozen=True, eq=False)
class _Job:
    """A request: its pairs, and the outputs that it wants."""

    pairs: list[Pair]
    wanted: frozenset[str]

    @classmethod
    def from_request(cls, request: Any) -> _Job:
        left, right = (_input(request, name) for name in (LEFT, RIGHT))
        parameters = json.loads(request.parameters() or "{}")
        axis, check = str(parameters.get(AXIS, "horizontal")), parameters.get(CHECK)
        check = None if check is None else str(check)
        wanted = frozenset(request.requested_output_names())
        return cls([(one, other, axis, check) for one, other in zip(left, right, strict=True)], wanted)


def _input(request: Any, name: str) -> NDArray[Any]:
    """An input ``(n, h, w, 3)``."""
    return _array(_utils().get_input_tensor_by_name(request, name))


# Tensors go by DLPack, not by the server's own way to NumPy: servers of release 24.10 take arrays of NumPy 2 for empty
# ones, and give such with wrong strides.


def _array(tensor: Any) -> NDArray[Any]:
    """A tensor of the server as an array; it is the server's memory, which is not written to."""
    return np.from_dlpack(tensor)


def _tensor(name: str, array: Array) -> Any:
    """An array as a tensor of the server."""
    lent = _Lent(array)
    tensor = _utils().Tensor.from_dlpack(name, lent)
    lent.mark_taken()
    return tensor


class _Lent:
    """An array for the server to take, whose capsule ends without a complaint.

    Who takes a DLPack capsule renames it, so that its end does not free the memory a second time. The server renames it
    to a name that NumPy does not know, and NumPy would print a traceback for each tensor.
    """

    _TAKEN = b"used_dltensor"

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self._capsule: Any = None

    def __dlpack__(self, **_: Any) -> Any:
        self._capsule = self._array.__dlpack__()
        return self._capsule

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def mark_taken(self) -> None:
        """Gives the capsule the name that the standard wants."""
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
        rename(self._capsule, self._TAKEN)


def _utils() -> Any:
    """The module that is there in a process of the Python backend only."""
    import triton_python_backend_utils

    return triton_python_backend_utils
