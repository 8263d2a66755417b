"""Cuts a deblur graph before the first block that reads the blur map, so that the part before runs beside CLIP.

What crosses are maps in FP16, and both engines keep them channels last, as TensorRT-RTX keeps maps inside: by its plans
the two parts together move as many bytes as the whole, to within 0.2 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx.utils import Extractor

from ldp_export.bundling.tensorrt_builder import Part
from ldp_runtime.bundle.engines import Profile, Shape, ShapeRange


@dataclass(frozen=True)
class Cut:
    """A deblur graph in two.

    Attributes:
        head: ONNX file of what needs no blur map, from ``pair`` to ``maps``.
        tail: ONNX file of the rest.
        maps: Channels, and px of the pair that a position covers on each side, of the maps that cross, by name.
    """

    head: Path
    tail: Path
    maps: Mapping[str, tuple[int, int]]

    def map_profile(self, pair: ShapeRange) -> Profile:
        """The shapes of the maps for pairs of a range of shapes ``(1, 6, H, W)``."""

        def at(pair: Shape, channels: int, stride: int) -> Shape:
            return 1, channels, pair[2] // stride, pair[3] // stride

        return {
            name: ShapeRange(*(at(shape, *size) for shape in (pair.min, pair.opt, pair.max)))
            for name, size in self.maps.items()
        }


def cut_parts(deblur: Part, multiple: int, folder: Path) -> list[Part]:
    """The head and the rest of a deblur graph, in order; nothing where it cannot be cut.

    Args:
        deblur: The whole.
        multiple: As for ``cut_deblur``, like ``folder``.
        folder: See there.
    """
    parts = cut_deblur(deblur.graph, multiple, folder)
    if parts is None:
        return []
    pair, maps = deblur.profile["pair"], tuple(parts.maps)
    rest = {**deblur.profile, **parts.map_profile(pair)}
    return [Part("head", parts.head, {"pair": pair}, maps), Part("deblur", parts.tail, rest, maps)]


def cut_deblur(graph: Path, multiple: int, folder: Path) -> Cut | None:
    """Cuts a deblur graph.

    Args:
        graph: The ONNX file, in FP16.
        multiple: H and W of the pair are multiples of this many px.
        folder: Where the two files go.

    Returns:
        The two parts; None where no convolution comes before the first use of blur logits.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    late, early = {"blur_logits"}, {"pair"}
    for node in model.graph.node:
        if late.intersection(node.input):
            late.update(node.output)
        elif node.op_type != "Shape" and early.intersection(node.input):
            early.update(node.output)
    needed = {name for node in model.graph.node if late.intersection(node.output) for name in node.input}
    halves = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    extractor = Extractor(model)
    maps = _maps(extractor, sorted(needed & early & halves), multiple)
    head = extractor.extract_model(["pair"], [*maps])
    if all(node.op_type != "Conv" for node in head.graph.node):
        return None
    tail = extractor.extract_model([*maps, "pair", "blur_logits"], ["restored"])
    parts = Cut(folder / f"head of {graph.name}", folder / f"rest of {graph.name}", maps)  # as messages name them
    onnx.save(head, parts.head)
    onnx.save(tail, parts.tail)
    return parts


def _maps(extractor: Extractor, names: list[str], multiple: int) -> dict[str, tuple[int, int]]:
    """Channels and strides of those tensors that are maps ``(1, C, h, w)``, which grow with the pair.

    What else is made of a map, such as the windows of attention or a mean, is made again where it is used.
    """
    if not names:
        return {}
    content = extractor.extract_model(["pair"], names).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    small, large = (
        {name: value.shape for name, value in zip(names, session.run(names, {"pair": pair}), strict=True)}
        for pair in (np.zeros((1, 6, y * multiple, x * multiple), np.float32) for y, x in ((1, 1), (2, 3)))
    )
    maps = {}
    for name, shape in small.items():
        if len(shape) == 4 and large[name] == (1, shape[1], 2 * shape[2], 3 * shape[2]):
            maps[name] = shape[1], multiple // shape[2]
    return maps
