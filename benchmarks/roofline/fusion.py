"""Which nodes of a graph run as one kernel, and what such a kernel computes and moves at least.

The rules are those fusions that TensorRT documents or is known to make, taken at their best, so that the sum over the
kernels is a floor for an engine that keeps to them. They were not compared with an engine's own layers. An engine that
fuses less is slower; one that fuses more (``EXTRA``) may be faster.

1. Constants: what depends on weights and shapes alone is computed at build time.
2. Shuffles are free: Reshape and the like, Transpose, Slice, Split, Gather, Expand, DepthToSpace and SpaceToDepth are
   index maps that the kernel before or after follows. A reader of a part reads only that part. A Cast to a wider type
   is made on load, one to a narrower type on store.
3. Pointwise chains run in the kernel that computes their input (convolution, matrix product, normalisation, attention,
   copy), as far as the result has no more elements than that kernel's; residual sums, gates and activations are such.
   Other inputs are read once.
4. Layer normalisation is one pass, also when the graph spells it out: reductions over the channels and the pointwise
   nodes between them. So is a softmax.
5. Attention is one flash-style kernel: Q K^T, scale, mask, softmax and the product with V; the map never leaves the
   chip. Q, K, V and the mask are read, and the result is written.
6. Concat is free where it joins whole results: each is written in place. Concat of parts, and Pad, are copies: a chain
   of them is one kernel, which reads its source and writes its result once.
7. Pooling, a reduction over space, and Resize are kernels of their own.

Every tensor between two kernels is written once and read once by each of its readers, at the bandwidth of the device's
memory. A last-level cache that holds a small tensor between two kernels would save that: ``Kernel.nbytes`` takes the
cache's size, and tensors (not weights, not the graph's inputs and outputs) that fit in it whole are then free.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from benchmarks.roofline.flops import (
    COPIES,
    MATRIX,
    NORMS,
    PERMUTATIONS,
    POINTWISE,
    POOLS,
    REDUCTIONS,
    VIEWS,
    GraphCost,
    NodeCost,
    is_depthwise,
)

Parts = tuple[tuple[str, int], ...]
"""What a tensor really is: results of kernels (or inputs, weights), and how many elements of each."""

_OPEN = frozenset({"matrix", "depthwise", "norm", "pointwise", "copy", "attention"})
"""Kinds of kernels that take pointwise chains."""


@dataclass
class Kernel:
    """Nodes that run as one.

    Attributes:
        kind: "matrix", "depthwise", "norm", "pointwise", "copy", "attention", "pool" or "resize".
        label: What it is and where, for people.
        nodes: The nodes in it.
        elements: Elements of its result, or of what it normalises: pointwise chains may have so many.
        shape: Shape of its first result; of a norm or pool, of what it reads.
        reads: Bytes of each tensor that it reads.
        writes: Bytes of each tensor that it writes.
    """

    kind: str
    label: str
    nodes: list[NodeCost]
    elements: int
    shape: tuple[int, ...]
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def matrix_flops(self) -> int:
        """FLOPs for tensor cores."""
        return sum(node.matrix_flops for node in self.nodes)

    @property
    def vector_flops(self) -> int:
        """All other FLOPs."""
        return sum(node.vector_flops for node in self.nodes)


@dataclass(frozen=True)
class FusedGraph:
    """A graph as kernels.

    Attributes:
        kernels: In the order in which they run.
        cacheable: Tensors between two kernels, with their bytes: those that a cache may hold.
    """

    kernels: tuple[Kernel, ...]
    cacheable: Mapping[str, int]

    def nbytes(self, kernel: Kernel, cache: int = 0) -> int:
        """Bytes that a kernel moves, without the tensors between kernels that fit into ``cache`` bytes."""
        moved = [*kernel.reads.items(), *kernel.writes.items()]
        return sum(size for name, size in moved if not 0 < self.cacheable.get(name, 0) <= cache)


def unfused(graph: GraphCost) -> FusedGraph:
    """Every node that moves or computes something as a kernel of its own."""
    kernels = []
    for node in graph.nodes:
        if node.op in VIEWS:
            continue
        kernel = _kernel(node, graph)
        kernel.reads = {node.inputs[0]: node.read_bytes}
        kernel.writes = {node.outputs[0]: node.write_bytes}
        kernels.append(kernel)
    return FusedGraph(tuple(kernels), {})


def fuse(graph: GraphCost, extra: tuple[str, ...] = ()) -> FusedGraph:
    """Groups the nodes by the rules above.

    Args:
        graph: The graph at one size.
        extra: Names of ``EXTRA``: fusions beyond the rules, to see what they would save.

    Returns:
        The kernels with what they read and write.
    """
    fusion = _Fusion(graph)
    kernels = fusion.run()
    for name in extra:
        kernels = _merge(kernels, *fusion.traffic(kernels)[:2], EXTRA[name])
    _, _, cacheable = fusion.traffic(kernels)
    return FusedGraph(tuple(kernels), cacheable)


class _Fusion:
    """The state of one grouping.

    Kernels are made in the graph's order, and a node joins only the latest of the kernels that it reads from: so every
    edge goes from an earlier kernel to a later one, and no cycle can come up.
    """

    def __init__(self, graph: GraphCost) -> None:
        self.graph = graph
        self.kernels: list[Kernel] = []
        self.home: dict[str, int] = {}
        self.parts: dict[str, Parts] = {}
        self.attention = _attention(graph)

    def run(self) -> list[Kernel]:
        for name, info in self.graph.tensors.items():
            self.parts[name] = ((name, info.elements),)
        pending: dict[int, list[NodeCost]] = defaultdict(list)
        for node in self.graph.nodes:
            group = self.attention.get(node.outputs[0])
            if group is not None:
                pending[group].append(node)
                if node.op == "MatMul" and len([n for n in pending[group] if n.op == "MatMul"]) == 2:
                    self._start("attention", node, pending[group])
            elif (parts := self._view(node)) is not None:
                for output in node.outputs:
                    self.parts[output] = _scaled(parts, self.graph.tensors[output].elements, node.op)
            else:
                self._place(node)
        return self.kernels

    def traffic(self, kernels: list[Kernel]) -> tuple[dict[str, int], dict[str, set[int]], dict[str, int]]:
        """Fills in what the kernels read and write.

        Returns:
            The kernel that makes each tensor, the kernels that read it, and the bytes of those between kernels.
        """
        where = {id(node): i for i, kernel in enumerate(kernels) for node in kernel.nodes}
        maker = {output: where[id(node)] for kernel in kernels for node in kernel.nodes for output in node.outputs}
        loads = [(where[id(node)], name, parts) for node, name, parts in self._loads()]
        views: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
        readers: dict[str, set[int]] = defaultdict(set)
        for index, name, parts in loads:
            for root, elements in parts:
                if maker.get(root) != index:
                    views[index, root][name] = elements * self.graph.tensors[root].itemsize
                    readers[root].add(index)
        for kernel in kernels:
            kernel.reads.clear()
            kernel.writes.clear()
        for (index, root), sizes in views.items():
            whole = max(self.graph.tensors[root].nbytes, *sizes.values())
            kernels[index].reads[root] = min(sum(sizes.values()), whole)
        finals = {root for name in self.graph.outputs for root, _ in self.parts[name]}
        cacheable = {}
        for root, index in maker.items():
            full = self.graph.tensors[root].nbytes
            if root in finals:
                kernels[index].writes[root] = full
            elif readers[root]:
                wanted: dict[str, int] = {}
                for reader in readers[root]:
                    wanted |= views[reader, root]
                kernels[index].writes[root] = min(full, sum(wanted.values()))
                cacheable[root] = full
        return maker, readers, cacheable

    def _loads(self) -> list[tuple[NodeCost, str, Parts]]:
        return [
            (node, name, self.parts[name])
            for kernel in self.kernels
            for node in kernel.nodes
            for name in _data_inputs(node, self.graph)
        ]

    def _view(self, node: NodeCost) -> Parts | None:
        """What the results of a free node really are; None where the node is not free."""
        tensors = self.graph.tensors
        source, output = tensors[node.inputs[0]], tensors[node.outputs[0]]
        widens = node.op == "Cast" and output.itemsize >= source.itemsize
        if node.op in VIEWS or node.op in PERMUTATIONS or widens or (node.op == "Pad" and source.shape == output.shape):
            return self.parts[node.inputs[0]]
        if node.op == "Concat":
            joined = [part for name in node.inputs for part in self.parts[name]]
            roots = [root for root, _ in joined]
            whole = all(elements == tensors[root].elements for root, elements in joined)
            if whole and len(set(roots)) == len(roots) and not set(roots) & set(self.graph.inputs):
                return tuple(joined)
        return None

    def _place(self, node: NodeCost) -> None:
        latest = self._latest(node)
        output = self.graph.tensors[node.outputs[0]]
        if latest is not None:
            kernel = self.kernels[latest]
            fits = output.elements <= kernel.elements
            joins = (
                (node.op in POINTWISE and kernel.kind in _OPEN and fits)
                or (node.op == "Cast" and fits)
                or (self._is_norm(node) and kernel.kind == "norm" and node.op != "Softmax")
                or (node.op in COPIES and kernel.kind == "copy")
            )
            if joins:
                kernel.nodes.append(node)
                kernel.elements = max(kernel.elements, output.elements) if kernel.kind == "copy" else kernel.elements
                self._own(node, latest)
                return
        self._start(self._kind(node), node, [node])

    def _start(self, kind: str, node: NodeCost, nodes: list[NodeCost]) -> None:
        kernel = _kernel(node, self.graph, kind)
        kernel.nodes = list(nodes)
        self.kernels.append(kernel)
        for member in nodes:
            self._own(member, len(self.kernels) - 1)

    def _own(self, node: NodeCost, index: int) -> None:
        for output in node.outputs:
            self.home[output] = index

    def _latest(self, node: NodeCost) -> int | None:
        homes = [self.home[root] for name in node.inputs for root, _ in self.parts[name] if root in self.home]
        return max(homes, default=None)

    def _is_norm(self, node: NodeCost) -> bool:
        if node.op in NORMS:
            return True
        if node.op not in REDUCTIONS:
            return False
        rank = len(self.graph.tensors[node.inputs[0]].shape)
        axes = {int(axis) % rank for axis in node.attributes.get("axes", range(rank))}
        return axes in ({1}, {rank - 1})

    def _kind(self, node: NodeCost) -> str:
        return _kind(node, self.graph, self._is_norm(node))


def _kind(node: NodeCost, graph: GraphCost, norm: bool) -> str:
    if node.op in MATRIX:
        return "depthwise" if is_depthwise(node, graph.tensors) else "matrix"
    if norm:
        return "norm"
    if node.op in POOLS | REDUCTIONS:
        return "pool"
    if node.op == "Resize":
        return "resize"
    return "copy" if node.op in COPIES | PERMUTATIONS else "pointwise"


def _kernel(node: NodeCost, graph: GraphCost, kind: str | None = None) -> Kernel:
    output, source = graph.tensors[node.outputs[0]], graph.tensors[node.inputs[0]]
    kind = kind or _kind(node, graph, node.op in NORMS)
    elements = source.elements if kind == "norm" else output.elements
    shape = source.shape if kind in ("norm", "pool") else output.shape
    return Kernel(kind, _label(node, graph, kind), [node], elements, shape)


def _label(node: NodeCost, graph: GraphCost, kind: str) -> str:
    shape = graph.tensors[node.outputs[0]].shape
    if node.op in ("Conv", "ConvTranspose"):
        weight, channels = graph.tensors[node.inputs[1]].shape, graph.tensors[node.inputs[0]].shape[1]
        side = "x".join(map(str, weight[2:]))
        what = "depthwise" if kind == "depthwise" else "convolution"
        return f"{what} {side}, {channels} to {shape[1]} channels, at {'x'.join(map(str, shape[2:]))}"
    names = {"attention": "attention", "norm": "layer norm", "matrix": "matrix product"}
    name = "softmax" if node.op == "Softmax" else names.get(kind, node.op)
    shown = graph.tensors[node.inputs[0]].shape if kind in ("norm", "pool") else shape
    return f"{name}, {'x'.join(map(str, shown))}"


def _data_inputs(node: NodeCost, graph: GraphCost) -> list[str]:
    """The inputs that a kernel reads from memory: without shapes and other parameters of the node."""
    parameters = node.op in VIEWS | PERMUTATIONS | REDUCTIONS | {"Pad", "Resize", "Tile"}
    return [node.inputs[0]] if parameters else list(dict.fromkeys(node.inputs))


def _scaled(parts: Parts, elements: int, op: str) -> Parts:
    """The parts that a free node's result reads: all of them, or pro rata where it takes less."""
    total = sum(count for _, count in parts)
    if op == "Expand" or elements >= total:
        return parts
    return tuple((root, math.ceil(count * elements / total)) for root, count in parts)


def _attention(graph: GraphCost) -> dict[str, int]:
    """Results of the nodes of attention: MatMul, pointwise, Softmax, casts, MatMul; a number for each group."""
    makers = {output: node for node in graph.nodes for output in node.outputs}
    readers: dict[str, list[NodeCost]] = defaultdict(list)
    for node in graph.nodes:
        for name in node.inputs:
            readers[name].append(node)
    groups: dict[str, int] = {}
    for number, softmax in enumerate(node for node in graph.nodes if node.op == "Softmax"):
        chain, at = [softmax], softmax
        while at.op != "MatMul":
            size = graph.tensors[at.outputs[0]].elements
            before = [
                makers[name]
                for name in at.inputs
                if name in makers
                and len(readers[name]) == 1
                and graph.tensors[name].elements == size
                and (makers[name].op in POINTWISE or makers[name].op in ("MatMul", "Reshape"))
            ]
            if not before:
                break
            at = next((node for node in before if node.op == "MatMul"), before[0])
            chain.append(at)
        first, at = at, softmax
        while at.op != "MatMul" or at is first:
            after = readers[at.outputs[0]]
            if len(after) != 1 or after[0].op not in ("Cast", "MatMul", "Reshape"):
                break
            at = after[0]
            chain.append(at)
        if first.op == "MatMul" and at.op == "MatMul" and at is not first:
            groups |= {output: number for node in chain for output in node.outputs}
    return groups


Merge = Callable[[Kernel, Kernel], bool]

EXTRA: Mapping[str, Merge] = MappingProxyType(
    {
        "resize in the multiplication": lambda a, b: a.kind == "resize" and b.kind == "pointwise",
        "multiplication in the convolution after it": lambda a, b: a.kind == "pointwise" and b.kind == "matrix",
        "layer norm in the convolution after it": lambda a, b: a.kind == "norm" and b.kind == "matrix",
        "1x1 and depthwise convolution in one": lambda a, b: a.kind == "matrix" and b.kind == "depthwise",
        "both 1x1 convolutions of the gated layer in one": lambda a, b: (
            a.kind == b.kind == "matrix" and "convolution 1x1" in a.label and "convolution 1x1" in b.label
        ),
    }
)
"""Fusions beyond the rules: whether a kernel runs inside of the only kernel that reads its result."""


def _merge(
    kernels: list[Kernel], maker: Mapping[str, int], readers: Mapping[str, set[int]], wanted: Merge
) -> list[Kernel]:
    """Moves kernels into the only reader of their results where ``wanted`` says so."""
    targets: dict[int, set[int]] = defaultdict(set)
    for root, index in maker.items():
        targets[index] |= readers.get(root, set())
    merged = dict(enumerate(kernels))
    into: dict[int, int] = {}
    for index, kernel in enumerate(kernels):
        if len(targets[index]) == 1:
            (target,) = targets[index]
            if wanted(kernel, kernels[target]):
                into[index] = target
    for index, target in into.items():
        receiver = merged[target]
        receiver.nodes = merged[index].nodes + receiver.nodes
        receiver.label = f"{merged[index].label} + {receiver.label}"
        # A chain a -> b -> c moves a into b first, and b with a in it into c: indices rise.
        del merged[index]
    return list(merged.values())
