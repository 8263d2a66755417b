"""CLIP on a second stream, beside the first levels of the deblur network: what that could gain, by the plan.

The deblur graph is cut before the first block that reads the blur map, and both parts are planned as engines of their
own. What crosses is written by one and read by the other, channels last as TensorRT-RTX keeps maps, so that nothing is
transposed. Two bounds follow. Where the kernels of the two streams never share the device, all floors add up. At best
they share it without loss: then both together take the longest of their bytes at the memory's peak, their FLOPs at
those of tensor cores and CUDA cores, and either alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

from benchmarks.roofline.chain import Chain, Step, floor, plan_layers
from benchmarks.roofline.flops import graph_cost
from benchmarks.roofline.hardware import Device
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import Shape, deblur_shapes

_LAST = "_channels_last"


@dataclass(frozen=True)
class Cut:
    """A deblur graph in two.

    Attributes:
        head: What needs no blur map.
        tail: The rest.
        shapes: Shapes of the inputs of each, by its path.
        crossing: Bytes that cross.
    """

    head: Path
    tail: Path
    shapes: dict[Path, dict[str, Shape]]
    crossing: int


def cut(graph: Path, shapes: dict[str, Shape], folder: Path) -> Cut:
    """Cuts a deblur graph before the first block that reads the blur map.

    Args:
        graph: The ONNX file, in FP16.
        shapes: Shapes of its inputs.
        folder: Where the two graphs go.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    tensors = graph_cost(graph, shapes).tensors
    halves = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    late, early = {"blur_logits"}, {"pair"}
    for node in model.graph.node:
        if late.intersection(node.input):
            late.update(node.output)
        elif node.op_type != "Shape" and early.intersection(node.input):
            early.update(node.output)
    needed = {name for node in model.graph.node if late.intersection(node.output) for name in node.input}
    # Maps alone: what is made of them for the attention's windows is made again where it is used.
    maps = sorted(n for n in needed & early & halves if len(tensors[n].shape) == 4 and tensors[n].shape[0] == 1)
    extractor = Extractor(model)
    head = extractor.extract_model(["pair"], maps)
    tail = extractor.extract_model([*maps, *shapes], ["restored"])
    sides: dict[str, Shape] = {}
    for name in maps:
        n, c, h, w = tensors[name].shape
        sides[name + _LAST] = n, h, w, c
        value = helper.make_tensor_value_info(name + _LAST, TensorProto.FLOAT16, [n, None, None, c])
        head.graph.node.append(helper.make_node("Transpose", [name], [value.name], value.name, perm=[0, 2, 3, 1]))
        tail.graph.node.insert(0, helper.make_node("Transpose", [value.name], [name], value.name, perm=[0, 3, 1, 2]))
        for ends in (head.graph.output, tail.graph.input):
            ends.remove(next(end for end in ends if end.name == name))
            ends.append(value)
    made = {}
    for name, part in (("head", head), ("tail", tail)):
        path = folder / f"{name}.onnx"
        onnx.save(part, path)
        made[path] = {end.name: sides.get(end.name) or shapes[end.name] for end in part.graph.input}
    first, second = made
    return Cut(first, second, made, sum(2 * tensors[name].elements for name in maps))


@dataclass(frozen=True)
class Beside:
    """The chain with a cut deblur graph.

    Attributes:
        around: What runs before and after, as without the cut.
        clip: CLIP and the blur logits.
        head: The deblur network's part without the blur map.
        tail: The rest of it.
        crossing: Bytes from ``head`` to ``tail``.
    """

    around: tuple[Step, ...]
    clip: tuple[Step, ...]
    head: tuple[Step, ...]
    tail: tuple[Step, ...]
    crossing: int

    def apart(self, device: Device, *, cached: bool = False) -> float:
        """Least seconds where nothing overlaps."""
        return floor((*self.around, *self.clip, *self.head, *self.tail), device, cached=cached)

    def together(self, device: Device, *, cached: bool = False) -> float:
        """Least seconds where CLIP and the head share the device without loss."""
        section = max(
            _shared((*self.clip, *self.head), device, cached=cached),
            *(floor(part, device, cached=cached) for part in (self.clip, self.head)),
        )
        return floor((*self.around, *self.tail), device, cached=cached) + section


def build_beside(bundle: Bundle, chain: Chain) -> Beside:
    """Builds the engines of both parts of the deblur graph, with no GPU, and reads their layers.

    Args:
        bundle: The bundle.
        chain: Its chain as it is.

    Raises:
        LDPError: TensorRT-RTX is not installed or refuses a part.
    """
    from ldp_export.bundling.tensorrt_builder import TensorRT

    tensorrt = TensorRT("rtx")
    shapes = deblur_shapes(*chain.padded, bundle.manifest.require_clip().patch)
    with tempfile.TemporaryDirectory() as folder:
        parts = cut(bundle.graph("deblur", "fp16"), shapes, Path(folder))
        head, tail = (
            plan_layers(tensorrt, "deblur", path, parts.shapes[path], graph_cost(path, parts.shapes[path]))
            for path in (parts.head, parts.tail)
        )
    clip = [step for step in chain.steps if step.stage in ("clip", "blur_logits")]
    around = [step for step in chain.steps if step.stage in ("prepare", "finish")]
    return Beside(tuple(around), tuple(clip), tuple(head), tuple(tail), parts.crossing)


def _shared(steps: Sequence[Step], device: Device, *, cached: bool) -> float:
    """Least seconds of launches that run at the same time."""
    cache = device.cache if cached else 0
    return device.seconds(
        sum(step.repeats * step.matrix_flops for step in steps),
        sum(step.repeats * step.vector_flops for step in steps),
        sum(step.repeats * step.nbytes(cache) for step in steps),
    )
