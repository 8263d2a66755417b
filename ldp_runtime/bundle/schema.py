"""Reading ``bundle.json``: limits first, then types, then the rules that tie fields together.

``msgspec`` checks types, ranges and names. Two promises that it cannot keep are kept here: it takes the last of
repeated fields, so ``json`` parses the text with hooks; it has no limit of depth and no rule for printable texts, so
``_check_tree`` walks all values.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from os import PathLike
from typing import Annotated, Any, NoReturn

from msgspec import Meta, Struct

from ldp_runtime.bundle.engines import architecture_number
from ldp_runtime.bundle.fields import MAX_BUNDLE_BYTES, Side
from ldp_runtime.bundle.manifest import (
    GRAPHS,
    MANIFEST_FILE,
    PROMPTS,
    SCHEMA,
    SCHEMA_VERSION,
    TEXT_EMBEDDINGS_FILE,
    BlurMapSpec,
    Manifest,
)
from ldp_runtime.errors import BundleError
from ldp_runtime.stages.blur_map import DP_AWARE, FORMATS
from ldp_runtime.stages.geometry import PADDING_MODE, padding_multiple
from ldp_runtime.structs import FieldPath, UnfitError, convert, dotted, shown

MAX_MANIFEST_BYTES = 4 << 20
"""Largest ``bundle.json``; a larger one is not parsed."""

MAX_DEPTH = 32
"""Objects and lists inside each other in ``bundle.json``, at most."""

FIX_FILES = "get the bundle again or export it again with ldp-export onnx"

FIX_MANIFEST = "export the bundle again with ldp-export onnx"

_FREE = ("network", "training", "parity", "evaluation", "quantization", "licences")
"""Fields that hold any JSON; they are not printed."""

_LEAST_SINGLE = 1.1754943508222875e-38  # of FP32, as a normal number


class _Network(Struct):
    """What the runtime reads of the network's config (``stages.tiles``); the rest is the exporter's own."""

    width: Side = 1
    stem: Annotated[int, Meta(ge=1, le=16)] = 1
    encoder: Annotated[list[Any], Meta(max_length=16)] = []
    bpa: Annotated[list[Any], Meta(max_length=16)] = []
    sca_cell: Side | None = None
    window: Side | None = None
    halo: Side | None = None
    memory: Annotated[int, Meta(ge=1, le=1 << 20)] = 1
    works_at: tuple[Side, Side] | None = None


def parse_manifest(content: bytes, path: PathLike[str]) -> Manifest:
    """Checks the content of ``bundle.json``.

    Args:
        content: Its bytes; more than ``MAX_MANIFEST_BYTES`` are not parsed.
        path: Names the file in errors.

    Raises:
        BundleError: It is too large or too deep, no JSON, or wrong in a field.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, got more; {FIX_FILES}")
    try:
        value = json.loads(content, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise BundleError(f"{path}: {_TOO_DEEP}; {FIX_FILES}") from None
    except ValueError as error:  # JSON or UTF-8
        raise BundleError(f"{path}: expected JSON, got {error}; {FIX_FILES}") from error
    return manifest_from_json(value, str(path))


_TOO_DEEP = f"expected at most {MAX_DEPTH} objects and lists inside each other, got more"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two fields of one name would let two readers see two manifests."""
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the field {next(name for name, count in counts.items() if count > 1)[:60]!r} twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON")


def manifest_from_json(value: Any, where: str = MANIFEST_FILE) -> Manifest:
    """Checks a manifest.

    Args:
        value: The parsed JSON.
        where: Names the manifest in errors.

    Raises:
        BundleError: A field is missing, unknown or wrong; the message names it.
    """
    if not isinstance(value, dict):
        raise BundleError(f"{where}: expected an object, got {shown(value)}; {FIX_MANIFEST}")
    fields = dict(value)
    try:
        _check_tree(value)
        if (schema := fields.pop("schema", None)) != SCHEMA:
            raise UnfitError.from_value("schema", repr(SCHEMA), schema)
        if (version := fields.pop("schema_version", None)) != SCHEMA_VERSION:
            raise BundleError(
                f"{where}: expected schema_version {SCHEMA_VERSION}, got {shown(version)}; "
                f"upgrade ldp if the bundle is newer, or {FIX_MANIFEST}"
            )
        manifest = convert(fields, Manifest)
        convert(manifest.network, _Network, ("network",))
        for misfit in _misfits(manifest):
            raise UnfitError.from_value(*misfit)
    except RecursionError:
        raise BundleError(f"{where}: {_TOO_DEEP}; {FIX_FILES}") from None
    except UnfitError as unfit:
        raise BundleError(f"{where}: field {unfit.field!r}{unfit.problem}; {FIX_MANIFEST}") from None
    return manifest


def _check_tree(value: Any, path: FieldPath = (), free: bool = False) -> None:
    """Checks the depth of all values, that numbers are finite, and that a terminal obeys no text.

    Raises:
        RecursionError: Too many objects and lists are inside each other.
        UnfitError: A value is something else.
    """
    if len(path) > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        for name, item in value.items():
            _check_tree(name, path, free)
            _check_tree(item, (*path, name), free or (not path and name in _FREE))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_tree(item, (*path, i), free)
    elif isinstance(value, str):
        if not value.isprintable() and (not free or re.search("[\ud800-\udfff]", value)):
            raise UnfitError.from_value(dotted(path), "printable characters", value)
    elif isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
        raise UnfitError.from_value(dotted(path), "a finite number", value)


def _misfits(manifest: Manifest) -> Iterator[tuple[str, str, object]]:
    """What a type does not hold: each field that is wrong, what it should be, and what it is."""
    clip, blur_map, graphs, files = manifest.clip, manifest.blur_map, manifest.graphs, manifest.files
    dense = blur_map.method == "dense"
    try:
        datetime.fromisoformat(manifest.created)
    except ValueError:
        yield "created", "a time in ISO 8601", manifest.created
    if clip is not None and clip.window % clip.patch:
        yield "clip.window", f"a multiple of the patch, {clip.patch}", clip.window
    if clip is not None and -(-clip.overlap // clip.patch) >= clip.window // clip.patch:
        yield "clip.overlap", f"at most {clip.window - clip.patch}, a patch less than a window", clip.overlap
    if clip is None and blur_map != BlurMapSpec():
        yield "blur_map", "no such field without clip", blur_map.method
    if dense != (blur_map.patch is None):
        yield "blur_map.patch", f"{'null' if dense else 'an integer'} with {blur_map.method}", blur_map.patch
    formats = [prompt.format for prompt in manifest.prompts]
    count = 0 if clip is None else PROMPTS if dense else 1
    if len(formats) != count:
        yield "prompts", "one prompt" if count == 1 else f"{count} prompts", len(formats)
    for name in () if clip is None else FORMATS if dense else (DP_AWARE,):
        if name not in formats:
            yield "prompts", f"at least one prompt of format {name}", formats
    for i, prompt in enumerate(manifest.prompts):
        if abs(prompt.temperature) < _LEAST_SINGLE:
            yield f"prompts[{i}].temperature", "a number other than zero", prompt.temperature
    multiple = padding_multiple(clip.patch if clip is not None and dense else 1)
    if manifest.padding.multiple % multiple:
        yield "padding.multiple", f"a multiple of {multiple}", manifest.padding.multiple
    if manifest.padding.mode != PADDING_MODE:
        yield "padding.mode", PADDING_MODE, manifest.padding.mode
    kinds = GRAPHS if clip is not None else ("deblur",)
    if graphs.keys() != set(kinds):
        yield "graphs", " and ".join(kinds), [*graphs]
    needed = {} if clip is None else {TEXT_EMBEDDINGS_FILE: "text embeddings"}
    for kind, precisions in graphs.items():
        if "fp32" not in precisions:
            yield f"graphs.{kind}", "a graph in fp32", [*precisions]
        needed |= {file: f"graphs.{kind}.{precision}" for precision, file in precisions.items()}
    for name, what in needed.items():
        if name not in files:
            yield "files", f"an entry for {name!r} ({what})", [*files]
    if MANIFEST_FILE in files:
        yield "files", "files other than the manifest", MANIFEST_FILE
    if (size := sum(entry.size for entry in files.values())) > MAX_BUNDLE_BYTES:
        yield "files", f"at most {MAX_BUNDLE_BYTES} bytes in all files together", size
    for i, engine in enumerate(manifest.engines):
        if engine.kind not in kinds:
            yield f"engines[{i}].kind", f"one of {', '.join(kinds)}", engine.kind
        if engine.head is not None and (engine.kind, engine.flavour) != ("deblur", "rtx"):
            yield f"engines[{i}].head", "a head of deblur engines of the flavour rtx alone", engine.head.file
        numbers = [architecture_number(target) for target in engine.targets]
        if numbers != sorted(set(numbers)):
            yield f"engines[{i}].targets", "architectures such as sm_89, rising", engine.targets
        for name, shapes in engine.profile.items():
            if not (shapes.holds(shapes.opt) and shapes.holds(shapes.min)):
                yield f"engines[{i}].profile.{name}.opt", "sizes from those of min to those of max", shapes.opt
