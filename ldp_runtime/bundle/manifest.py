"""The manifest ``bundle.json`` as typed values; ``schema`` reads and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ldp_runtime.bundle.engines import EngineEntry
from ldp_runtime.bundle.fields import (
    MAX_EMBED_DIM,
    MAX_FILES,
    MAX_WINDOW,
    BlurRange,
    Bytes,
    Count,
    FileName,
    GraphName,
    PositiveSingle,
    Sha256,
    Side,
    Single,
    Text,
)
from ldp_runtime.errors import BundleError
from ldp_runtime.stages.blur_map import ENSEMBLES, FORMATS, select_canvases
from ldp_runtime.stages.geometry import Padding
from ldp_runtime.stages.tiles import tile_halo, tile_multiple
from ldp_runtime.structs import one_of

SCHEMA = "ldp-bundle"

SCHEMA_VERSION = 1

MANIFEST_FILE = "bundle.json"

TEXT_EMBEDDINGS_FILE = "text_embeddings.npy"

SELFTEST_FILE = "selftest.npz"
"""Optional: a pair and its expected restoration, see ``ldp_runtime.selftest``."""

PROMPTS = 8

GRAPHS = ("clip", "deblur")

GRAPH_PRECISIONS = ("fp32", "fp16", "int8")
"""Of graphs: "int8", which ``ldp-export quantize`` makes, leaves in FP32 what is not quantised."""

BLUR_METHODS = ("dense", "patch")

NETWORK_INPUTS = ("logits", "map")


class ClipSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The CLIP image encoder.

    Attributes:
        architecture: Name of the open_clip model.
        patch: Side of a patch in px.
        window: Side of a window in px, a multiple of ``patch``.
        overlap: Neighbouring windows share at least this many px.
        mean: Mean of R, G, B in [0, 1], subtracted first.
        std: Standard deviation of R, G, B, divided by.
        embed_dim: Length of a feature.
        quick_gelu: The encoder was exported with QuickGELU, as OpenAI's weights need.
        weights: Origin of the weights.
    """

    architecture: Text
    patch: Side
    window: Side
    overlap: Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
    mean: tuple[Single, Single, Single]
    std: tuple[PositiveSingle, PositiveSingle, PositiveSingle]
    embed_dim: Annotated[int, Meta(ge=1, le=MAX_EMBED_DIM)]
    quick_gelu: bool
    weights: Text


class Prompt(Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt of Table 4 and its calibration, ``z = (100 cos - offset) / temperature``.

    Attributes:
        text: The prompt.
        format: One of ``blur_map.FORMATS``.
        offset: In units of ``100 cos``.
        temperature: In units of ``100 cos``; not zero, negative where a higher similarity means the opposite.
    """

    text: Text
    format: Annotated[str, one_of(FORMATS)]
    offset: Single
    temperature: Single


class BlurMapSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How the blur map is estimated, and the form in which the deblur graph reads it.

    A manifest without the field ``blur_map`` has these defaults, the paper's.

    Attributes:
        method: One of ``BLUR_METHODS``. "dense": one value per token, from CLIP's dense features of windows (Eq. 4-6).
            "patch": one value per patch of the image, from CLIP's pooled feature, as the authors' released code has it
            (``patch_blur_map``); then ``clip.window`` is the side of the image that CLIP sees of a patch.
        network_input: One of ``NETWORK_INPUTS``. "logits": ``blur_logits (1, 1, any, any)``, unnormalised. "map":
            ``blur_map (1, 1, H, W)`` in [0, 1], at the size of the padded pair.
        patch: Side in px of a patch of the image with method "patch"; None with "dense".
    """

    method: Annotated[str, one_of(BLUR_METHODS)] = "dense"
    network_input: Annotated[str, one_of(NETWORK_INPUTS)] = "logits"
    patch: Side | None = None


class SourceFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The name and SHA-256 of a file of the authors'."""

    name: Text
    sha256: Sha256


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an imported bundle's weights come from.

    Attributes:
        kind: Which network it is, as ``ldp-export import`` names it.
        files: The authors' files.
        licence: Their licence, a phrase.
        sharing: Whether the bundle may be passed on, a phrase.
        cite: The sentence to cite.
    """

    kind: Text
    files: Annotated[tuple[SourceFile, ...], Meta(min_length=1, max_length=MAX_FILES)]
    licence: Text
    sharing: Text
    cite: Text


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The SHA-256 (64 hexadecimal digits, lower case) and size in bytes of a file of the bundle."""

    sha256: Sha256
    size: Bytes


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``bundle.json``, schema version 1.

    Attributes:
        name: Name of the bundle.
        created: Time of the export, ISO 8601.
        network: Config of the deblur network.
        clip: The CLIP image encoder; None where the network reads no blur map. Then there is no CLIP graph, no
            ``text_embeddings.npy`` and no prompt, ``blur_map`` is the default and ``ensemble`` means nothing.
        prompts: The eight prompts, in the order of the rows of ``text_embeddings.npy``; with ``blur_map.method``
            "patch" one.
        ensemble: The ensemble that the network was trained with: a name of ``blur_map.ENSEMBLES``, or the index of a
            single prompt.
        padding: The size rule of the pair.
        graphs: ``{"clip" | "deblur": {precision: file}}``, each precision one of ``GRAPH_PRECISIONS``; "fp32" is
            always there.
        opset: ONNX opset of the graphs.
        tools: Versions of what exported the bundle.
        blur_map: How the blur map is estimated and given to the network.
        blur_range: Largest radius in px of a circle of confusion in training; None where it was not written down.
        training: Provenance of the weights.
        parity: Figures measured at export.
        evaluation: Figures of ``ldp-export evaluate``.
        quantization: Precision -> how its quantised graphs were made and what they cost; a manifest without the field
            has none.
        bf16: Whether "auto" may take bf16. False where an import failed the self-test in it, or the CPU had none; a
            manifest without the field may.
        licences: Licences of weights and data.
        origin: Where imported weights come from; None where they were not imported.
        engines: Built TensorRT engines. They carry their own hashes: one for another GPU need not be here.
        files: Hash and size of every file, by its path inside the bundle with forward slashes.
    """

    name: Text
    created: str
    network: Mapping[str, Any]
    clip: ClipSpec | None
    prompts: tuple[Prompt, ...]
    ensemble: Annotated[str, one_of(ENSEMBLES)] | Annotated[int, Meta(ge=0, lt=PROMPTS)]
    padding: Padding
    graphs: Mapping[Annotated[str, one_of(GRAPHS)], Mapping[Annotated[str, one_of(GRAPH_PRECISIONS)], GraphName]]
    opset: Count
    tools: Mapping[str, str]
    blur_map: BlurMapSpec = BlurMapSpec()
    blur_range: BlurRange | None = None
    training: Mapping[str, Any]
    parity: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    quantization: Mapping[str, Any] = {}
    bf16: bool = True
    licences: Mapping[str, Any]
    origin: Origin | None = None
    engines: Annotated[tuple[EngineEntry, ...], Meta(max_length=MAX_FILES)]
    files: Annotated[Mapping[FileName, FileEntry], Meta(max_length=MAX_FILES)]

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, in the order of the schema."""
        value = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **msgspec.to_builtins(self)}
        if self.blur_map == BlurMapSpec():
            del value["blur_map"]
        for name in ("blur_range", "origin"):
            if getattr(self, name) is None:
                del value[name]
        if self.padding.least == 1:
            del value["padding"]["least"]
        if not self.quantization:
            del value["quantization"]
        if self.bf16:
            del value["bf16"]
        return value

    @property
    def reads_blur_map(self) -> bool:
        """Whether the network reads a blur map: then there are a CLIP graph and prompts."""
        return self.clip is not None

    def require_clip(self) -> ClipSpec:
        """``clip``, for what needs a blur map.

        Raises:
            BundleError: The network reads no blur map.
        """
        if self.clip is None:
            raise BundleError(
                f"bundle {self.name!r} has no blur map: its network reads none; choose a bundle whose network reads one"
            )
        return self.clip

    @property
    def canvases(self) -> tuple[str, ...]:
        """What CLIP sees of a window: the names of ``blur_map.CANVASES`` that the ensemble's prompts query."""
        return select_canvases(self.prompts, self.ensemble)

    @property
    def blur_cell(self) -> int:
        """Side in px of the square of the image that one blur logit stands for; 1 where there is no blur map."""
        return self.blur_map.patch or (self.clip.patch if self.clip else 1)

    @property
    def tile_multiple(self) -> int:
        """The grid that tile origins lie on, in px, see ``tiles.tile_multiple``."""
        return tile_multiple(self.network, self.padding.multiple, self.blur_cell)

    @property
    def tile_halo(self) -> int:
        """Px that neighbouring tiles share on each side of a seam, see ``tiles.tile_halo``."""
        return tile_halo(self.network)

    def graph_names(self, kind: str) -> tuple[set[str], set[str]]:
        """Names of the inputs and of the outputs of a graph, ``"clip"`` or ``"deblur"``."""
        if kind == "deblur" and not self.reads_blur_map:
            return {"pair"}, {"restored"}
        if kind == "deblur":
            return {"pair", f"blur_{self.blur_map.network_input}"}, {"restored"}
        if self.blur_map.method == "patch":
            return {"patches"}, {"features"}
        return {*self.canvases}, {f"{name}_features" for name in self.canvases}
