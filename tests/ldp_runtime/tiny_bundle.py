"""A complete bundle small enough to build in a test: real graphs, hand-set weights, no torch.

The CLIP graph is a strided convolution (the patch embedding) with random weights. The deblur graph adds to
the center view a small residual: convolutions of the pair at half resolution times the probability of blur,
shuffled back, so that both inputs and both views matter.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest, write_manifest
from ldp_runtime.bundle.engines import EngineEntry, ShapeRange, engine_key
from ldp_runtime.bundle.manifest import TEXT_EMBEDDINGS_FILE, ClipSpec, Manifest, Prompt
from ldp_runtime.stages.blur_map import CANVASES
from ldp_runtime.stages.geometry import Padding

OPSET = 20
IR_VERSION = 10
PATCH = 16
WINDOW = 64
OVERLAP = 16
EMBED_DIM = 24
PADDING_MULTIPLE = 32
MEAN = (0.48, 0.46, 0.41)
STD = (0.27, 0.26, 0.28)


def make_tiny_bundle(
    folder: Path, name: str = "tiny", *, seed: int = 0, clip: bool = True, ensemble: str | int = "ens2"
) -> Path:
    """Writes the bundle ``folder / name`` and returns its path.

    Args:
        folder: Where to put it; made if missing.
        name: Name of the bundle and of its folder.
        seed: Of its weights.
        clip: With a CLIP graph; else its network reads no blur map.
        ensemble: Of its prompts.
    """
    path = folder / name
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    manifest = msgspec.structs.replace(tiny_manifest(name, clip=clip), ensemble=ensemble)
    seen = functools.partial(clip_graph, canvases=manifest.canvases)
    deblur = functools.partial(deblur_graph, blur_map=clip)
    for kind, graph in (("clip", seen), ("deblur", deblur))[not clip :]:
        state = rng.bit_generator.state
        for precision, suffix in ((np.float32, ".onnx"), (np.float16, ".fp16.onnx")):
            rng.bit_generator.state = state  # the same weights in both precisions
            onnx.save(graph(rng, np.dtype(precision)), path / f"{kind}{suffix}")
    if clip:
        embeddings = rng.standard_normal((8, EMBED_DIM)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        np.save(path / TEXT_EMBEDDINGS_FILE, embeddings)
    write_manifest(path, manifest)
    return path


def tiny_manifest(name: str = "tiny", *, clip: bool = True) -> Manifest:
    """The manifest of the tiny bundle, its files not listed yet; without ``clip`` its network reads no blur map."""
    prompts = [Prompt(f"Blurry {i}.", "blur-aware", 1.0 + i, 9.0 + i) for i in range(4)]
    prompts += [Prompt(f"Symmetrical {i}.", "dp-aware", 2.0 - i, 8.0 - i) for i in range(3)]
    prompts += [Prompt("Symmetrical, sign learnt.", "dp-aware", 0.5, -11.0)]
    graphs = {kind: {"fp32": f"{kind}.onnx", "fp16": f"{kind}.fp16.onnx"} for kind in ("clip", "deblur")[not clip :]}
    return Manifest(
        name=name,
        created="2026-01-01T00:00:00Z",
        network={"config": "tiny"},
        clip=ClipSpec("tiny-clip", PATCH, WINDOW, OVERLAP, MEAN, STD, EMBED_DIM, False, "random") if clip else None,
        prompts=tuple(prompts) if clip else (),
        ensemble="ens2",
        padding=Padding(PADDING_MULTIPLE),
        graphs=graphs,
        opset=OPSET,
        tools={"onnx": onnx.__version__},
        training={},
        parity={},
        evaluation={},
        licences={"weights": "Apache-2.0", "data": []},
        engines=(),
        files={},
    )


def rewrite(path: Path, **changes: object) -> None:
    """Writes the tiny bundle's manifest again with some fields of ``tiny_manifest`` changed."""
    write_manifest(path, msgspec.structs.replace(tiny_manifest(path.name), **changes))


def make_engine(path: Path, content: bytes, name: str = "a", **changes: Any) -> EngineEntry:
    """Writes an engine's file into a bundle and returns its entry, whose key is that of no graph."""
    file = path / "engines" / f"{name}.engine"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    fields: dict[str, Any] = {
        "kind": "deblur",
        "flavour": "rtx",
        "version": "1.7",
        "targets": ("sm_89",),
        "profile": {"pair": ShapeRange(*[(1, 6, 64, 64)] * 3)},
        "key": "0" * 64,
        "file": f"engines/{name}.engine",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    return EngineEntry(**{**fields, **changes})


def add_engine(path: Path, content: bytes = b"plan", **parts: Any) -> EngineEntry:
    """Puts an engine into a bundle; its key is right for ``parts``: all that ``engine_key`` asks for but the graph."""
    key = engine_key(Bundle.load(path).graph_hash(parts["kind"], "fp16"), **parts)
    entry = make_engine(path, content, key[:8], **parts, key=key)
    manifest = read_manifest(path)
    save_manifest(path, msgspec.structs.replace(manifest, engines=(*manifest.engines, entry)))
    return entry


class Graph:
    """Collects nodes and weights of one precision, and makes them a model."""

    def __init__(self, dtype: np.dtype[np.floating]) -> None:
        self.dtype = dtype
        self.element = helper.np_dtype_to_tensor_dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic]) -> str:
        """Adds a constant and returns its name; float64 becomes the graph's precision."""
        array = value.astype(self.dtype) if value.dtype == np.float64 else value
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns its name."""
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def model(
        self, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]], io: int
    ) -> onnx.ModelProto:
        """The checked model; ``io`` is the element type of its inputs and outputs."""
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info(name, io, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, io, shape) for name, shape in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def clip_graph(
    rng: np.random.Generator, dtype: np.dtype[np.floating], canvases: Sequence[str] = tuple(CANVASES)
) -> onnx.ModelProto:
    """A patch embedding: ``(B, 3, y, x)`` to ``(B, y / p, x / p, c)`` for each of ``canvases``; I/O in ``dtype``."""
    g = Graph(dtype)
    weight = g.constant(rng.standard_normal((EMBED_DIM, 3, PATCH, PATCH)) / PATCH)
    bias = g.constant(rng.standard_normal(EMBED_DIM))
    for name in canvases:
        embedded = g.node("Conv", name, weight, bias, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
        g.node("Transpose", embedded, output=f"{name}_features", perm=[0, 2, 3, 1])
    tokens = WINDOW // PATCH
    widths = {name: 2 if name == "stereo" else 1 for name in canvases}
    return g.model(
        {name: ["B", 3, WINDOW, width * WINDOW] for name, width in widths.items()},
        {f"{name}_features": ["B", tokens, width * tokens, EMBED_DIM] for name, width in widths.items()},
        g.element,
    )


def deblur_graph(
    rng: np.random.Generator, dtype: np.dtype[np.floating], gain: float = 0.02, blur_map: bool = True
) -> onnx.ModelProto:
    """``center + sigmoid(blur logits) * network(pair)``; I/O and the skip in FP32, the network in ``dtype``.

    Args:
        rng: Draws the weights.
        dtype: Of the network.
        gain: Size of the residual's weights; the residual is some 5 times that.
        blur_map: It reads the blur logits; else the residual is added as it is.
    """
    g = Graph(dtype)
    bounds = [g.constant(np.array([at])) for at in (0, 3, 6)]
    axis = g.constant(np.array([1]))
    left = g.node("Slice", "pair", bounds[0], bounds[1], axis)
    right = g.node("Slice", "pair", bounds[1], bounds[2], axis)
    center = g.node("Mul", g.node("Add", left, right), g.constant(np.array(0.5, np.float32)))

    def conv(x: str, c_in: int, c_out: int, scale: float) -> str:
        weight = g.constant(rng.standard_normal((c_out, c_in, 3, 3)) * scale)
        bias = g.constant(rng.standard_normal(c_out) * scale)
        return g.node("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    network = g.node("SpaceToDepth", g.node("Cast", "pair", to=g.element), blocksize=2)
    network = conv(network, 24, 16, 0.1)
    network = g.node("Mul", network, g.node("Sigmoid", network))
    network = conv(network, 16, 12, gain)
    inputs: dict[str, list[int | str]] = {"pair": [1, 6, "H", "W"]}
    if blur_map:
        inputs["blur_logits"] = [1, 1, "h", "w"]
        scales = g.constant(np.array([1, 1, PATCH / 2, PATCH / 2], np.float32))
        blurred = g.node("Resize", g.node("Sigmoid", "blur_logits"), "", scales, mode="linear")
        network = g.node("Mul", g.node("Cast", blurred, to=g.element), network)
    residual = g.node("DepthToSpace", g.node("Cast", network, to=TensorProto.FLOAT), blocksize=2, mode="CRD")
    g.node("Add", center, residual, output="restored")
    return g.model(inputs, {"restored": [1, 3, "H", "W"]}, TensorProto.FLOAT)
