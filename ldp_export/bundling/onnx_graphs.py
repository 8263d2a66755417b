"""Exports a network and its CLIP as a bundle: ONNX graphs in FP32 and strongly typed FP16, and the manifest.

The FP16 graphs come from a copy of the module in half precision. The code itself keeps the FP32 islands: statistics of
layer normalisation, pooling of channel attention, softmax, and the skip ``restored = center + network``. The positional
embeddings of CLIP are resized in FP32 and then baked.
"""

from __future__ import annotations

import copy
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass
from onnxscript import optimizer
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from ldp_export.bundling.parity import Parity, measure
from ldp_export.bundling.selftest import add_sample
from ldp_export.checkpoint import Windows
from ldp_export.clip import LoadedClip, PatchEncoder, WindowEncoder, embed_texts
from ldp_export.model import DeblurNetwork, ExportError, ExportModel
from ldp_export.network.bpa import BPABlock
from ldp_export.network.layers import Enlarge, NAFBlock
from ldp_export.network.published.base import PublishedNetwork
from ldp_export.network.released import ReleasedNet
from ldp_runtime import __version__
from ldp_runtime.bundle.bundle import write_manifest
from ldp_runtime.bundle.engines import clip_shapes
from ldp_runtime.bundle.manifest import MANIFEST_FILE, TEXT_EMBEDDINGS_FILE, ClipSpec, Manifest
from ldp_runtime.files import staged_folder

OPSET = 20
"""Up to 22 attention stays matrix products and softmax, which every runtime takes."""

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights from which on they lie in a file beside the graph: a protobuf holds at most 2 GiB."""

EXPORTED_PRECISIONS = ("fp32", "fp16")
"""Of the graphs written here; ``quantize`` adds others."""

_FOLD_ALL = 2**31
_SIZE_LIMIT = 2**16
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "open_clip_torch", "numpy")


class ParityError(Exception):
    """The exported graphs do not compute what the network computes: a gate failed, nothing was written."""


def export_bundle(
    model: ExportModel, output: Path, name: str, *, report: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Writes a bundle and checks it; on a failure nothing of it is left.

    Args:
        model: What to export.
        output: The bundle's folder. In one that exists, files of other names stay.
        name: The bundle's name.
        report: Takes what is going on, a line at a time.

    Returns:
        The manifest as written. An import of which FP16 alone fails has no FP16 graphs: other authors' networks may
        exceed its range or need more digits, and nothing here can be trained again.

    Raises:
        ParityError: The graphs do not agree with the network.
        WriteError: The folder cannot be written.
    """
    encoder = model.clip_encoder()
    kinds = ("deblur",) if encoder is None else ("clip", "deblur")
    files = {kind: {p: _file_name(kind, p) for p in EXPORTED_PRECISIONS} for kind in kinds}
    with staged_folder(output, last=MANIFEST_FILE) as staged:
        for precision in EXPORTED_PRECISIONS:
            half = precision == "fp16"
            if encoder is not None:
                report(f"clip graph, {precision}")
                save_graph(clip_graph(encoder, half=half), staged / files["clip"][precision])
            report(f"deblur graph, {precision}")
            graph = deblur_graph(model.network, model.multiple, half=half, blur_map=encoder is not None)
            save_graph(graph, staged / files["deblur"][precision])
        if model.clip is not None:
            with torch.no_grad():
                texts = embed_texts(model.clip, [prompt.text for prompt in model.prompts]).numpy()
            np.save(staged / TEXT_EMBEDDINGS_FILE, np.ascontiguousarray(texts, dtype=np.float32))
        parity = measure(model, {k: {p: staged / f for p, f in v.items()} for k, v in files.items()}, report)
        if model.origin is not None and parity.failures and not parity.fp32_failures:
            for of_kind in files.values():
                for file in staged.glob(f"{of_kind.pop('fp16')}*"):  # with its weights
                    file.unlink()
        else:
            _check(parity)
        write_manifest(staged, _manifest(model, name, files, parity))
        report("self-test")
        manifest = add_sample(staged)
    return manifest


def steps(model: ExportModel) -> int:
    """How often ``export_bundle`` reports."""
    return 6 if model.clip is None else 8


def clip_graph(encoder: WindowEncoder | PatchEncoder, *, half: bool) -> ir.Model:
    """The graph of CLIP on windows or patches.

    Args:
        encoder: The encoder, FP32; it stays as it is.
        half: FP16 inside, and for inputs and outputs; else FP32.

    Returns:
        On windows, ``stereo (B, 3, s, 2s)``, ``center (B, 3, s, s)`` or one of them to ``stereo_features
        (B, s/p, 2s/p, c)``, ``center_features (B, s/p, s/p, c)``. On patches of side s, ``patches (B, 3, s, 2s)`` to
        ``features (B, c)``. B is free.
    """
    module = copy.deepcopy(encoder)
    transformer = module.encoder.visual.transformer
    batch_second = half and all(isinstance(block.attn, nn.MultiheadAttention) for block in transformer.resblocks)
    transformer.batch_first = not batch_second
    for block in transformer.resblocks:
        if isinstance(block.attn, nn.MultiheadAttention):
            block.attn = (InPlaceAttention if batch_second else SelfAttention)(block.attn)
        if half and isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = QuotientGELU()
    dtype = torch.float16 if half else torch.float32
    batch = Dim("B", min=1, max=_SIZE_LIMIT)
    if isinstance(module, PatchEncoder):
        return _to_onnx(
            module.to(dtype),
            {"patches": torch.zeros(2, 3, module.side, 2 * module.side, dtype=dtype)},
            ["features"],
            {"patches": {0: batch}},
            {name: {0: "B"} for name in ("patches", "features")},
        )
    shapes = clip_shapes(2, module.window, module.canvases)
    outputs = [f"{name}_features" for name in shapes]
    return _to_onnx(
        module.to(dtype),
        {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()},
        outputs,
        {name: {0: batch} for name in shapes},
        {name: {0: "B"} for name in (*shapes, *outputs)},
    )


def deblur_graph(network: DeblurNetwork, multiple: int, *, half: bool, blur_map: bool = True) -> ir.Model:
    """The graph of the deblurring network.

    Args:
        network: The network, FP32; it stays as it is.
        multiple: H and W are multiples of this many px.
        half: FP16 inside; inputs and outputs are FP32 in any case, so that the skip keeps 16-bit images.
        blur_map: The graph has an input for the blur; a network that reads none may go without.

    Returns:
        ``pair (1, 6, H, W)``, ``blur_logits (1, 1, h, w)`` to ``restored (1, 3, H, W)``; H, W, h and w are free. The
        released network takes ``blur_map (1, 1, H, W)`` in place of the logits.
    """
    module = copy.deepcopy(network)
    for block in module.modules():
        if isinstance(block, (NAFBlock, BPABlock)):
            block.fold()
            if half:
                block.merge_norms()
            else:
                block.split_gates()
        elif isinstance(block, Enlarge) and half:
            block.merge_shuffle()
    module.to(torch.float16 if half else torch.float32)
    least = module.config.least if isinstance(module, PublishedNetwork) else multiple
    fewest = -(-least // multiple)
    height, width = (Dim(name, min=fewest, max=_SIZE_LIMIT) * multiple for name in ("rows", "columns"))
    sides = (3 * fewest * multiple, 5 * fewest * multiple)  # that no rule of the network can confuse
    if isinstance(module, ReleasedNet):
        names = {2: "H", 3: "W"}
        return _to_onnx(
            module,
            {"pair": torch.zeros(1, 6, *sides), "blur_map": torch.zeros(1, 1, *sides)},
            ["restored"],
            {name: {2: height, 3: width} for name in ("pair", "blur_map")},
            {name: names for name in ("pair", "blur_map", "restored")},
        )
    pair = torch.zeros(1, 6, *sides)
    if not blur_map:
        names = {2: "H", 3: "W"}
        dynamic = {"pair": {2: height, 3: width}}
        return _to_onnx(module, {"pair": pair}, ["restored"], dynamic, {"pair": names, "restored": names})
    free = {2: Dim("h", min=1, max=_SIZE_LIMIT), 3: Dim("w", min=1, max=_SIZE_LIMIT)}
    return _to_onnx(
        module,
        {
            "pair": pair,
            "blur_logits": torch.zeros(1, 1, 7, 9),
        },
        ["restored"],
        {"pair": {2: height, 3: width}, "blur_logits": free},
        {"pair": {2: "H", 3: "W"}, "blur_logits": {2: "h", 3: "w"}, "restored": {2: "H", 3: "W"}},
    )


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` as plain matrix products, with an FP32 softmax; for export only.

    torch's own exports with the batch as the second axis, transposed to and fro. That costs nodes, and on such an FP16
    graph ONNX Runtime 1.32 crashes when it opens it.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if not attention._qkv_same_embed_dim or attention.bias_k is not None or not attention.batch_first:
            raise ExportError("expected self-attention over one width with the batch first, got another kind")
        self.heads = attention.num_heads
        self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """``(B, n, C)`` to ``(B, n, C)``; key and value are the query's tensor, as CLIP's image encoder has it."""
        projected = F.linear(query, self.weight, self.bias).chunk(3, dim=2)  # (B, n, C) each
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in projected)  # (B, heads, n, d)
        return self.out_proj(_attend(q, k, v).transpose(1, 2).flatten(2)), None


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries ``(..., n, d)`` to keys with values, with an FP32 softmax."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return torch.softmax(logits.float(), dim=-1).to(v.dtype) @ v


class InPlaceAttention(SelfAttention):
    """``SelfAttention`` with the batch as the second axis, for the FP16 graph only.

    TensorRT-RTX's kernel reads Q, K and V in place if batch and heads are one axis, and if each is a tensor of its own.
    It joins matrix products of one input, and then copies the parts of their result; convolutions it does not join.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention)
        width = attention.embed_dim
        self.parts = nn.ModuleList(nn.utils.skip_init(nn.Conv2d, width, width, 1) for _ in range(3))
        for part, weight, bias in zip(self.parts, self.weight.chunk(3), self.bias.chunk(3), strict=True):
            part.weight = nn.Parameter(weight.detach()[:, :, None, None].clone())
            part.bias = nn.Parameter(bias.detach().clone())

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """``(n, B, C)`` to ``(n, B, C)``; key and value are the query's tensor."""
        length, _, width = query.shape
        positions = query.flatten(0, 1)[:, :, None, None]  # (n * B, C, 1, 1)
        q, k, v = (
            part(positions).reshape(length, -1, width // self.heads).transpose(0, 1) for part in self.parts
        )  # (B * heads, n, d)
        return self.out_proj(_attend(q, k, v).transpose(0, 1).reshape(length, -1, width)), None


class QuotientGELU(nn.Module):
    """CLIP's QuickGELU, ``x sigmoid(1.702 x)``, as a quotient; for the FP16 graph only.

    TensorRT-RTX computes it where the matrix product before it ends. A sigmoid would be a layer of its own, which reads
    and writes the widest map of a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same; where the exponential overflows, the quotient is the limit, zero."""
        return x / (1 + torch.exp(-1.702 * x))


def save_graph(graph: ir.Model, path: Path) -> None:
    """Writes a graph, its weights beside it where they are too many for one file, and checks it.

    Raises:
        onnx.checker.ValidationError: The graph is no valid ONNX.
    """
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(graph, path, external_data=f"{path.name}.data" if weights > EXTERNAL_ABOVE else None)
    onnx.checker.check_model(str(path), full_check=True)


def _to_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, Any]],
    axes: Mapping[str, Mapping[int, str]],
) -> ir.Model:
    """Exports a module and tidies the graph: constants folded, no traces of the source, axes named.

    The inputs are arguments of its ``forward``, by their names.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of axis names that are equal, and of torch's own future
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: dict(dynamic[name]) for name in inputs},
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("expected a graph of torch.onnx.export, got none")
    graph = program.model
    CommonSubexpressionEliminationPass()(graph)  # CLIP's weights serve both of its inputs: transpose each once
    # The size limits guard against constants larger than what makes them; here those are weights to transpose.
    optimizer.optimize_ir(graph, input_size_limit=_FOLD_ALL, output_size_limit=_FOLD_ALL)
    ClearMetadataAndDocStringPass()(graph)
    ends = {value.name: value for value in (*graph.graph.inputs, *graph.graph.outputs)}
    for node in graph.graph:
        for value in node.outputs:
            if value.name not in ends:
                value.shape = value.type = None  # each runtime infers them; torch's are full of odd names
    for name, value in ends.items():
        names = axes.get(str(name), {})
        value.shape = ir.Shape([names.get(i, size) for i, size in enumerate(value.shape or ())])
    return graph


def _file_name(kind: str, precision: str) -> str:
    return f"{kind}.onnx" if precision == "fp32" else f"{kind}.{precision}.onnx"


def _check(parity: Parity) -> None:
    if parity.failures:
        raise ParityError(f"the exported graphs failed the parity check: {'; '.join(parity.failures)}")


def _manifest(model: ExportModel, name: str, files: Mapping[str, Mapping[str, str]], parity: Parity) -> Manifest:
    tools = {package: metadata.version(package) for package in _TOOLS}
    return Manifest(
        name=name,
        created=datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z"),
        network=model.network.config.to_dict(),
        clip=None if model.clip is None or model.windows is None else _clip_spec(name, model.clip, model.windows),
        prompts=model.prompts,
        ensemble=model.network.config.ensemble,
        padding=model.padding,
        graphs=files,
        opset=OPSET,
        tools={"ldp": __version__, "python": platform.python_version(), **tools},
        training=model.training,
        blur_map=model.blur_map,
        blur_range=model.blur_range,
        parity=parity.figures,
        evaluation={},
        licences=model.licences,
        origin=model.origin,
        engines=(),
        files={},
    )


def _clip_spec(name: str, clip: LoadedClip, windows: Windows) -> ClipSpec:
    return ClipSpec(
        architecture=f"{name}-clip" if clip.architecture == "clip" else clip.architecture,
        patch=clip.encoder.patch,
        window=windows.window,
        overlap=windows.overlap,
        mean=clip.mean,
        std=clip.std,
        embed_dim=int(clip.encoder.visual.output_dim),
        quick_gelu=clip.quick_gelu,
        weights=clip.weights,
    )
