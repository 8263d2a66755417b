"""Engines in a bundle: their manifest entries, their keys, and which one fits a GPU and a size.

An engine is a graph that TensorRT compiled for some GPUs and a range of shapes. Its key is a hash of everything that it
was built from: an engine of another graph, TensorRT, target or shape is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from ldp_runtime.bundle.fields import MAX_BUNDLE_BYTES, Architecture, EngineName, Sha256, Text
from ldp_runtime.stages.blur_map import CANVASES
from ldp_runtime.structs import one_of

FLAVOURS = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
"""The two TensorRTs: the one for RTX GPUs, which builds without a GPU, and the enterprise one, which needs the GPU."""

ENGINE_PRECISION = "fp16"
"""Precision of engines, and of the graphs that they are built from."""

_KEY_FORMAT = 4
"""Raised when the same parts give another engine."""

Shape = tuple[int, ...]
_Sizes = Annotated[tuple[Annotated[int, Meta(ge=1, lt=2**31)], ...], Meta(min_length=1, max_length=8)]


class ShapeRange(Struct, frozen=True, forbid_unknown_fields=True):
    """The shapes of an input that an engine accepts, each axis from ``min`` to ``max``; it is tuned for ``opt``."""

    min: _Sizes
    opt: _Sizes
    max: _Sizes

    @property
    def fixed(self) -> bool:
        """Whether one shape alone fits."""
        return self.min == self.max

    def holds(self, shape: Shape) -> bool:
        """Whether an input of this shape fits."""
        return len(shape) == len(self.min) == len(self.max) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        low, high = ("x".join(map(str, shape)) for shape in (self.min, self.max))
        return low if self.fixed else f"{low} to {high}"


Profile = Mapping[str, ShapeRange]
"""The shapes of each input of a graph."""


class EngineFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A serialized engine.

    Attributes:
        file: Its path inside the bundle with forward slashes.
        sha256: Hash of the file, 64 hexadecimal digits.
        size: Bytes of the file.
    """

    file: EngineName
    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_BUNDLE_BYTES)]


class EngineEntry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An engine of a bundle, as its manifest lists it: one file, or two that run one after the other.

    Attributes:
        kind: The graph that it was built from, ``"clip"`` or ``"deblur"``.
        flavour: A name of ``FLAVOURS``.
        version: Version of that TensorRT; no other runs the engine.
        targets: Architectures of the GPUs that run it, such as ``"sm_89"``, rising.
        profile: The shapes of each input.
        key: ``engine_key`` of all of the above and the graph, 64 hexadecimal digits.
        file: As for ``EngineFile``, like ``sha256`` and ``size``; where there is a head, the rest.
        precision: ``ENGINE_PRECISION``; manifests of schema version 1 name it.
        head: What needs no blur map, of a deblur graph that was cut before the first use of it.
    """

    kind: Annotated[str, one_of(("clip", "deblur"))]
    flavour: Annotated[str, one_of(FLAVOURS)]
    version: Text
    targets: Annotated[tuple[Architecture, ...], Meta(min_length=1)]
    profile: Annotated[Profile, Meta(min_length=1)]
    key: Sha256
    file: EngineName
    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_BUNDLE_BYTES)]
    precision: Annotated[str, one_of((ENGINE_PRECISION,))] = ENGINE_PRECISION
    head: EngineFile | None = None

    @property
    def files(self) -> tuple[EngineFile, ...]:
        """Its files, in the order in which they run."""
        last = EngineFile(self.file, self.sha256, self.size)
        return (last,) if self.head is None else (self.head, last)

    @property
    def total_size(self) -> int:
        """Bytes of its files together."""
        return sum(file.size for file in self.files)

    def made_from(self, graph: str) -> bool:
        """Whether the engine was built from the graph of this hash, with what the entry says.

        Args:
            graph: ``Bundle.graph_hash`` of the graph as it is now.
        """
        return self.key == engine_key(
            graph, self.kind, self.flavour, self.version, self.targets, self.profile, len(self.files)
        )

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes, one for each input of the graph, fit the profile."""
        return shapes.keys() == self.profile.keys() and all(
            self.profile[name].holds(shape) for name, shape in shapes.items()
        )

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {shapes}" for name, shapes in self.profile.items())
        kind = self.kind if self.head is None else f"{self.kind} in two parts"
        return f"{kind} by {FLAVOURS[self.flavour]} {self.version} for {', '.join(self.targets)}: {inputs}"


def engine_key(
    graph: str, kind: str, flavour: str, version: str, targets: Iterable[str], profile: Profile, parts: int = 1
) -> str:
    """SHA-256 over all that an engine is made from; all but the graph and the parts are fields of ``EngineEntry``.

    Args:
        graph: ``Bundle.graph_hash`` of the graph.
        kind: Which graph it is.
        flavour: The TensorRT.
        version: Its version.
        targets: The architectures; their order does not matter.
        profile: The shapes of each input; the order of inputs does not matter.
        parts: Engines that the graph was cut into.

    Returns:
        64 hexadecimal digits.
    """
    content = {
        "format": _KEY_FORMAT,
        "graph": graph,
        "kind": kind,
        "flavour": flavour,
        "version": version,
        "targets": sorted(targets, key=architecture_number),
        "profile": {name: [list(r.min), list(r.opt), list(r.max)] for name, r in profile.items()},
        "parts": parts,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def architecture_number(architecture: str) -> int:
    """The number in an architecture's name, such as 89 of ``"sm_89"``.

    Raises:
        ValueError: It has another form.
    """
    prefix, _, number = architecture.partition("_")
    if prefix != "sm" or not number.isascii() or not number.isdigit():
        raise ValueError(f"expected an architecture such as sm_89, got {architecture!r}")
    return int(number)


def deblur_shapes(H: int, W: int, patch: int) -> dict[str, Shape]:
    """Shapes of the deblur graph's inputs.

    Args:
        H: Height of the padded pair, or of a tile of it, in px; a multiple of ``patch``.
        W: Width, likewise.
        patch: Side of CLIP's patch in px; the blur logits hold one value a patch.
    """
    return {"pair": (1, 6, H, W), "blur_logits": (1, 1, H // patch, W // patch)}


def clip_shapes(batch: int, window: int, canvases: Iterable[str] = CANVASES) -> dict[str, Shape]:
    """Shapes of the CLIP graph's inputs.

    Args:
        batch: Windows in a batch.
        window: Side of a window in px.
        canvases: What CLIP sees of a window, names of ``blur_map.CANVASES``.
    """
    shapes = {"stereo": (batch, 3, window, 2 * window), "center": (batch, 3, window, window)}
    return {name: shapes[name] for name in canvases}


def feature_shapes(batch: int, side: int, channels: int, canvases: Iterable[str]) -> dict[str, Shape]:
    """Shapes of the CLIP graph's outputs.

    Args:
        batch: Windows in a batch.
        side: Side of a window in tokens.
        channels: Length of a feature.
        canvases: What CLIP sees of a window, names of ``blur_map.CANVASES``.
    """
    shapes = {"stereo": (batch, side, 2 * side, channels), "center": (batch, side, side, channels)}
    return {f"{name}_features": shapes[name] for name in canvases}


def nearest(entries: Iterable[EngineEntry], shapes: Mapping[str, Shape]) -> EngineEntry | None:
    """The best entry for inputs of these shapes: a fixed one first, then one with a head, then the nearest size.

    Args:
        entries: The candidates.
        shapes: The shape of each input.

    Returns:
        The entry; None where no profile holds the shapes.
    """

    def distance(entry: EngineEntry) -> tuple[bool, bool, float, str]:
        fixed = all(shapes.fixed for shapes in entry.profile.values())
        ratios = [abs(math.log(math.prod(entry.profile[n].opt) / math.prod(shape))) for n, shape in shapes.items()]
        return not fixed, entry.head is None, max(ratios), entry.key

    return min((entry for entry in entries if entry.holds(shapes)), key=distance, default=None)
