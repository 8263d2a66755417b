"""Reading ``bundle.json``: limits first, then field by field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.bundle.engines import (
    ENGINE_FOLDER,
    ENGINE_PRECISIONS,
    FLAVOURS,
    EngineEntry,
    Shape,
    ShapeRange,
    architecture_number,
)
from ldp_runtime.bundle.manifest import (
    BLUR_METHODS,
    GRAPH_PRECISIONS,
    GRAPHS,
    MANIFEST_FILE,
    NETWORK_INPUTS,
    PROMPTS,
    SCHEMA,
    SCHEMA_VERSION,
    TEXT_EMBEDDINGS_FILE,
    BlurMapSpec,
    ClipSpec,
    FileEntry,
    Manifest,
    Prompt,
)
from ldp_runtime.errors import BundleError
from ldp_runtime.stages.blur_map import DP_AWARE, ENSEMBLES, FORMATS
from ldp_runtime.stages.geometry import PADDING_MODE, Padding

MAX_MANIFEST_BYTES = 4 << 20
"""Largest ``bundle.json``; a larger one is not parsed."""

MAX_DEPTH = 32
"""Objects and lists inside each other in ``bundle.json``, at most."""

MAX_FILES = 1000
"""Most files, and most engines, of a bundle."""

MAX_BUNDLE_BYTES = 32 << 30
"""Most bytes that the files of a bundle have together, by the manifest; an engine may have as many."""

MAX_WINDOW = 4096
"""Largest window, patch or padding rule in px: what a small image grows to is bounded by it."""

MAX_EMBED_DIM = 16384
"""Longest feature."""

FIX_FILES = "get the bundle again or export it again with ldp-export onnx"

FIX_MANIFEST = "export the bundle again with ldp-export onnx"

_NETWORK_MULTIPLE = 16

_MAX_INTEGER = 2**53  # what every JSON reader keeps exactly

_MAX_NAME = 200


def parse_manifest(content: bytes, path: Path) -> Manifest:
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
    _check_depth(value, path)
    return manifest_from_json(value, str(path))


_TOO_DEEP = f"expected at most {MAX_DEPTH} objects and lists inside each other, got more"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two fields of one name would let two readers see two manifests."""
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the field {name[:60]!r} twice")
        value[name] = item
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no JSON")


def _check_depth(value: object, path: Path) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [item for item in level if isinstance(item, (dict, list))]
        level = [child for item in inner for child in (item.values() if isinstance(item, dict) else item)]
    if level:
        raise BundleError(f"{path}: {_TOO_DEEP}; {FIX_FILES}")


class _UnfitError(Exception):
    """A value is not what its field expects; the message says what that is."""


class _Object:
    """A JSON object whose fields are taken one by one; what nobody took is an unknown field."""

    def __init__(self, value: object, where: str, prefix: str = "") -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(value, dict):
            field = f"field {prefix[:-1]!r}: " if prefix else ""
            raise BundleError(f"{where}: {field}expected an object, got {_shown(value)}; {FIX_MANIFEST}")
        self.value: dict[str, Any] = value
        self._left = dict.fromkeys(value)

    def error(self, name: str, expected: str, got: object) -> BundleError:
        return BundleError(
            f"{self.where}: field {self.prefix + name!r}: expected {expected}, got {_shown(got)}; {FIX_MANIFEST}"
        )

    def take(self, name: str, check: Callable[[object], Any]) -> Any:
        if name not in self.value:
            raise BundleError(f"{self.where}: field {self.prefix + name!r} is missing; {FIX_MANIFEST}")
        self._left.pop(name, None)
        try:
            return check(self.value[name])
        except _UnfitError as unfit:
            raise self.error(name, str(unfit), self.value[name]) from None

    def child(self, name: str) -> _Object:
        return _Object(self.take(name, lambda value: value), self.where, f"{self.prefix}{name}.")

    def children(self, name: str) -> list[_Object]:
        items = self.take(name, _list)
        if len(items) > MAX_FILES:
            raise self.error(name, f"at most {MAX_FILES} entries", len(items))
        return [_Object(item, self.where, f"{self.prefix}{name}[{i}].") for i, item in enumerate(items)]

    def close(self) -> None:
        if self._left:
            unknown = self.prefix + next(iter(self._left))
            raise BundleError(
                f"{self.where}: field {unknown!r} is not part of schema version {SCHEMA_VERSION}; {FIX_MANIFEST}"
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text if len(text) <= 60 else text[:57] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _UnfitError("a text")
    if not value.isprintable():  # they are printed: a terminal obeys control characters
        raise _UnfitError("a text of printable characters")
    return value


def _time(value: object) -> str:
    try:
        datetime.fromisoformat(_text(value))
    except (ValueError, _UnfitError):
        raise _UnfitError("a time in ISO 8601") from None
    return _text(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError("true or false")
    return value


def _integer(least: int, most: int = _MAX_INTEGER) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _UnfitError(f"an integer of at least {least}")
        if value > most:
            raise _UnfitError(f"an integer of at most {most}")
        return value

    return check


def _number(value: object) -> float:
    expected = _UnfitError("a finite number")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise expected
    try:
        number = float(value)
    except OverflowError:
        raise expected from None
    if not math.isfinite(number):
        raise expected
    return number


def _null(value: object) -> None:
    if value is not None:
        raise _UnfitError("null")


def _single(value: object) -> float:
    if abs(number := _number(value)) > np.finfo(np.float32).max:
        raise _UnfitError("a number that FP32 holds")
    return number


def _not_zero(value: object) -> float:
    if abs(number := _single(value)) < np.finfo(np.float32).tiny:
        raise _UnfitError("a number other than zero")
    return number


def _three(check: Callable[[float], bool], what: str) -> Callable[[object], tuple[float, ...]]:
    def check_three(value: object) -> tuple[float, ...]:
        expected = _UnfitError(f"three {what}")
        try:
            numbers = tuple(_number(item) for item in _list(value))
        except _UnfitError:
            raise expected from None
        if len(numbers) != 3 or not all(map(check, numbers)):
            raise expected
        return numbers

    return check_three


def _one_of(choices: tuple[str, ...]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise _UnfitError(f"one of {', '.join(choices)}")
        return str(value)

    return check


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _UnfitError("a list")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _UnfitError("an object")
    return value


def _texts(value: object) -> dict[str, str]:
    mapping = _mapping(value)
    if not all(isinstance(item, str) for item in mapping.values()):
        raise _UnfitError("an object of texts")
    return mapping


def _file_name(value: object) -> str:
    name = _text(value)
    if (reason := unsafe(name)) is not None:
        raise _UnfitError(f"a file inside the bundle ({reason})")
    return name


def _graph_name(value: object) -> str:
    name = _file_name(value)
    if not name.endswith(".onnx"):  # backends tell formats by the suffix, and know others that are not checked here
        raise _UnfitError("a file whose name ends in .onnx")
    return name


def unsafe(name: str) -> str | None:
    """Why a name cannot be that of a file in the bundle, or None."""
    if "\\" in name or ":" in name or "\0" in name:
        return "only forward slashes, no drive"
    if name.startswith("/"):
        return "no absolute path"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "no '.', '..' or empty part"
    # No wildcards either: ONNX Runtime takes weights at an address in memory for the name "*/_ORT_MEM_ADDR_/*".
    if not re.fullmatch(r"[A-Za-z0-9._+/-]+", name):
        return "only letters, digits and . _ + -"
    if len(name) > _MAX_NAME:
        return f"at most {_MAX_NAME} characters"
    return None


def _sha256(value: object) -> str:
    text = _text(value)
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise _UnfitError("64 hexadecimal digits in lower case")
    return text


def _network(fields: _Object) -> dict[str, Any]:
    """The network's config. It is the exporter's own; checked is what the runtime reads of it (``tiles``)."""
    side = _integer(1, MAX_WINDOW)
    checks: dict[str, Callable[[object], Any]] = {
        "width": side,
        "stem": _integer(1, 16),
        "encoder": _short_list,
        "bpa": _short_list,
        "sca_cell": lambda value: value if value is None else side(value),
        "window": lambda value: value if value is None else side(value),
    }
    for name in checks.keys() & fields.value.keys():
        fields.take(name, checks[name])
    return fields.value


def _short_list(value: object) -> list[Any]:
    if len(items := _list(value)) > 16:
        raise _UnfitError("a list of at most 16 entries")
    return items


def _clip(top: _Object) -> ClipSpec | None:
    if top.take("clip", lambda value: value) is None:
        return None
    fields = top.child("clip")
    spec = ClipSpec(
        architecture=fields.take("architecture", _text),
        patch=fields.take("patch", _integer(1, MAX_WINDOW)),
        window=fields.take("window", _integer(1, MAX_WINDOW)),
        overlap=fields.take("overlap", _integer(0, MAX_WINDOW)),
        mean=fields.take("mean", _three(lambda number: True, "numbers")),
        std=fields.take("std", _three(lambda number: number > 0, "numbers above zero")),
        embed_dim=fields.take("embed_dim", _integer(1, MAX_EMBED_DIM)),
        quick_gelu=fields.take("quick_gelu", _flag),
        weights=fields.take("weights", _text),
    )
    fields.close()
    if spec.window % spec.patch:
        raise fields.error("window", f"a multiple of the patch, {spec.patch}", spec.window)
    if -(-spec.overlap // spec.patch) >= spec.window // spec.patch:
        raise fields.error("overlap", f"at most {spec.window - spec.patch}, a patch less than a window", spec.overlap)
    return spec


def _prompt(fields: _Object) -> Prompt:
    prompt = Prompt(
        text=fields.take("text", _text),
        format=fields.take("format", _one_of(FORMATS)),
        offset=fields.take("offset", _single),
        temperature=fields.take("temperature", _not_zero),
    )
    fields.close()
    return prompt


def _ensemble(value: object) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < PROMPTS:
        return value
    if isinstance(value, int):
        raise _UnfitError(f"a prompt from 0 to {PROMPTS - 1}")
    return _one_of(tuple(ENSEMBLES))(value)


def _blur_map(fields: _Object) -> BlurMapSpec:
    method = fields.take("method", _one_of(BLUR_METHODS))
    spec = BlurMapSpec(
        method=method,
        network_input=fields.take("network_input", _one_of(NETWORK_INPUTS)),
        patch=fields.take("patch", _integer(1, MAX_WINDOW) if method == "patch" else _null),
    )
    fields.close()
    return spec


def _padding(fields: _Object) -> Padding:
    padding = Padding(
        multiple=fields.take("multiple", _integer(1, MAX_WINDOW)),
        mode=fields.take("mode", _one_of((PADDING_MODE,))),
    )
    fields.close()
    return padding


def _graphs(fields: _Object, clip: ClipSpec | None) -> dict[str, dict[str, str]]:
    graphs: dict[str, dict[str, str]] = {}
    for kind in GRAPHS if clip is not None else ("deblur",):
        child = fields.child(kind)
        present = [precision for precision in GRAPH_PRECISIONS if precision == "fp32" or precision in child.value]
        graphs[kind] = {precision: child.take(precision, _graph_name) for precision in present}
        child.close()
    fields.close()
    return graphs


def _targets(value: object) -> tuple[str, ...]:
    expected = _UnfitError("architectures such as sm_89, rising")
    try:
        targets = tuple(_text(item) for item in _list(value))
        numbers = [architecture_number(target) for target in targets]
    except (ValueError, _UnfitError):
        raise expected from None
    if not numbers or numbers != sorted(set(numbers)):
        raise expected
    return targets


def _shape(value: object) -> Shape:
    sizes = tuple(_list(value))
    if not 0 < len(sizes) <= 8 or not all(
        isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**31 for size in sizes
    ):
        raise _UnfitError("a list of sizes, integers of at least 1")
    return sizes


def _shape_range(fields: _Object) -> ShapeRange:
    shapes = ShapeRange(*(fields.take(name, _shape) for name in ("min", "opt", "max")))
    fields.close()
    if not (shapes.holds(shapes.opt) and shapes.holds(shapes.min)):
        raise fields.error("opt", "sizes from those of min to those of max", list(shapes.opt))
    return shapes


def _engine(fields: _Object) -> EngineEntry:
    profile = fields.child("profile")
    entry = EngineEntry(
        kind=fields.take("kind", _one_of(GRAPHS)),
        flavour=fields.take("flavour", _one_of(tuple(FLAVOURS))),
        version=fields.take("version", _text),
        targets=fields.take("targets", _targets),
        precision=fields.take("precision", _one_of(tuple(ENGINE_PRECISIONS))),
        profile={name: _shape_range(profile.child(name)) for name in profile.value},
        key=fields.take("key", _sha256),
        file=fields.take("file", _engine_file),
        sha256=fields.take("sha256", _sha256),
        size=fields.take("size", _integer(1, MAX_BUNDLE_BYTES)),
    )
    profile.close()
    fields.close()
    if not entry.profile:
        raise fields.error("profile", "the shapes of each input", {})
    return entry


def _engine_file(value: object) -> str:
    name = _file_name(value)
    if not name.startswith(f"{ENGINE_FOLDER}/"):
        raise _UnfitError(f"a file in {ENGINE_FOLDER}/")
    return name


def _files(fields: _Object) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    if len(fields.value) > MAX_FILES:
        raise BundleError(
            f"{fields.where}: field 'files': expected at most {MAX_FILES} files, got {len(fields.value)}; "
            f"{FIX_MANIFEST}"
        )
    for name in fields.value:
        if name == MANIFEST_FILE or (reason := unsafe(name)) is not None:
            reason = "not the manifest itself" if name == MANIFEST_FILE else reason
            raise BundleError(
                f"{fields.where}: field 'files': expected files inside the bundle ({reason}), got {name!r}; "
                f"{FIX_MANIFEST}"
            )
        entry = fields.child(name)
        files[name] = FileEntry(sha256=entry.take("sha256", _sha256), size=entry.take("size", _integer(0)))
        entry.close()
    if sum(entry.size for entry in files.values()) > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{fields.where}: field 'files': expected at most {MAX_BUNDLE_BYTES} bytes in all files together, got "
            f"more; {FIX_MANIFEST}"
        )
    return files


def _check_whole(manifest: Manifest, top: _Object) -> None:
    """The rules that tie several fields together."""
    dense, clip = manifest.blur_map.method == "dense", manifest.clip
    count = 0 if clip is None else PROMPTS if dense else 1
    if len(manifest.prompts) != count:
        raise top.error("prompts", "one prompt" if count == 1 else f"{count} prompts", len(manifest.prompts))
    for name in () if clip is None else FORMATS if dense else (DP_AWARE,):
        if not any(prompt.format == name for prompt in manifest.prompts):
            raise top.error("prompts", f"at least one prompt of format {name}", [p.format for p in manifest.prompts])
    if clip is None and manifest.blur_map != BlurMapSpec():
        raise top.error("blur_map", "no such field without clip", top.value["blur_map"])
    multiple = math.lcm(_NETWORK_MULTIPLE, clip.patch) if clip is not None and dense else _NETWORK_MULTIPLE
    if manifest.padding.multiple % multiple:
        raise top.error("padding.multiple", f"a multiple of {multiple}", manifest.padding.multiple)
    for i, engine in enumerate(manifest.engines):
        if engine.kind not in manifest.graphs:
            raise top.error(f"engines[{i}].kind", f"one of {', '.join(manifest.graphs)}", engine.kind)
    needed = {} if clip is None else {TEXT_EMBEDDINGS_FILE: "text embeddings"}
    for kind, precisions in manifest.graphs.items():
        needed |= {file: f"graphs.{kind}.{precision}" for precision, file in precisions.items()}
    for name, what in needed.items():
        if name not in manifest.files:
            raise BundleError(
                f"{top.where}: field 'files': expected an entry for {name!r} ({what}), got none; {FIX_MANIFEST}"
            )


def manifest_from_json(value: object, where: str = MANIFEST_FILE) -> Manifest:
    """Checks a manifest field by field.

    Args:
        value: The parsed JSON.
        where: Names the manifest in errors.

    Raises:
        BundleError: A field is missing, unknown or wrong; the message names it.
    """
    top = _Object(value, where)
    if top.take("schema", _text) != SCHEMA:
        raise top.error("schema", f"{SCHEMA!r}", top.value["schema"])
    version = top.take("schema_version", _integer(1))
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, got {version}; "
            f"upgrade ldp if the bundle is newer, or {FIX_MANIFEST}"
        )
    clip = _clip(top)
    manifest = Manifest(
        name=top.take("name", _text),
        created=top.take("created", _time),
        network=_network(top.child("network")),
        clip=clip,
        prompts=tuple(_prompt(child) for child in top.children("prompts")),
        ensemble=top.take("ensemble", _ensemble),
        padding=_padding(top.child("padding")),
        graphs=_graphs(top.child("graphs"), clip),
        opset=top.take("opset", _integer(1)),
        tools=top.take("tools", _texts),
        blur_map=_blur_map(top.child("blur_map")) if "blur_map" in top.value else BlurMapSpec(),
        training=top.take("training", _mapping),
        parity=top.take("parity", _mapping),
        evaluation=top.take("evaluation", _mapping),
        quantization=top.take("quantization", _mapping) if "quantization" in top.value else {},
        licences=top.take("licences", _mapping),
        engines=tuple(_engine(child) for child in top.children("engines")),
        files=_files(top.child("files")),
    )
    top.close()
    _check_whole(manifest, top)
    return manifest
