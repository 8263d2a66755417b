"""The bundle: a folder with graphs, text embeddings and the manifest ``bundle.json`` that hashes them.

Loading verifies everything before anything is used. The writing side is here too, for the exporter, so that
one module knows the schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.blur_map import ENSEMBLES, FORMATS
from ldp_runtime.errors import BundleError
from ldp_runtime.geometry import PADDING_MODE, Padding
from ldp_runtime.onnx_files import external_files

SCHEMA = "ldp-bundle"
SCHEMA_VERSION = 1
MANIFEST_FILE = "bundle.json"
TEXT_EMBEDDINGS_FILE = "text_embeddings.npy"
PROMPTS = 8
GRAPHS = ("clip", "deblur")
GRAPH_PRECISIONS = ("fp32", "fp16")
ENV_BUNDLES = "LDP_BUNDLES"

_MEND_FILES = "get the bundle again or export it again with ldp-export onnx"
_MEND_MANIFEST = "export the bundle again with ldp-export onnx"
_NETWORK_MULTIPLE = 16


@dataclass(frozen=True)
class ClipSpec:
    """What the runtime must know of the CLIP image encoder.

    Attributes:
        architecture: Name of the open_clip model.
        patch: Side of a patch in px.
        window: Side of a window in px, a multiple of ``patch``.
        overlap: Neighbouring windows share at least this many px.
        mean: Mean of R, G, B in [0, 1], subtracted first.
        std: Standard deviation of R, G, B, divided by.
        embed_dim: Length of a feature.
        quick_gelu: The encoder was exported with QuickGELU, as OpenAI's weights need.
        weights: Where the weights came from.
    """

    architecture: str
    patch: int
    window: int
    overlap: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed_dim: int
    quick_gelu: bool
    weights: str


@dataclass(frozen=True)
class Prompt:
    """A prompt of Table 4 and its calibration, ``z = (100 cos - offset) / temperature``.

    Attributes:
        text: The prompt.
        format: One of ``blur_map.FORMATS``.
        offset: In units of ``100 cos``.
        temperature: In units of ``100 cos``; not zero, negative where a higher similarity means the opposite.
    """

    text: str
    format: str
    offset: float
    temperature: float


@dataclass(frozen=True)
class FileEntry:
    """The SHA-256 (64 hexadecimal digits, lower case) and size in bytes of a file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """``bundle.json``, schema version 1.

    Attributes:
        name: Name of the bundle.
        created: Time of the export, ISO 8601.
        network: Config of the deblur network.
        clip: The CLIP image encoder.
        prompts: The eight prompts, in the order of the rows of ``text_embeddings.npy``.
        ensemble: The ensemble that the network was trained with, a name of ``blur_map.ENSEMBLES``.
        padding: The size rule of the pair.
        graphs: ``{"clip" | "deblur": {"fp32" | "fp16": file}}``; "fp32" is always there.
        opset: ONNX opset of the graphs.
        tools: Versions of what exported the bundle.
        training: Provenance of the weights.
        parity: Figures measured at export.
        evaluation: Figures of ``ldp-export evaluate``.
        licences: Licences of weights and data.
        engines: Built TensorRT engines.
        files: Hash and size of every file, by its path inside the bundle with forward slashes.
    """

    name: str
    created: str
    network: Mapping[str, Any]
    clip: ClipSpec
    prompts: tuple[Prompt, ...]
    ensemble: str
    padding: Padding
    graphs: Mapping[str, Mapping[str, str]]
    opset: int
    tools: Mapping[str, str]
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engines: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, FileEntry] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, in the order of the schema."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: object, where: str = MANIFEST_FILE) -> Manifest:
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
                f"{where}: expected schema_version {SCHEMA_VERSION}, came {version}; "
                f"upgrade ldp if the bundle is newer, or {_MEND_MANIFEST}"
            )
        manifest = cls(
            name=top.take("name", _text),
            created=top.take("created", _time),
            network=top.take("network", _mapping),
            clip=_clip(top.child("clip")),
            prompts=tuple(_prompt(child) for child in top.children("prompts")),
            ensemble=top.take("ensemble", _one_of(tuple(ENSEMBLES))),
            padding=_padding(top.child("padding")),
            graphs=_graphs(top.child("graphs")),
            opset=top.take("opset", _integer(1)),
            tools=top.take("tools", _texts),
            training=top.take("training", _mapping),
            parity=top.take("parity", _mapping),
            evaluation=top.take("evaluation", _mapping),
            licences=top.take("licences", _mapping),
            engines=tuple(child.free() for child in top.children("engines")),
            files=_files(top.child("files")),
        )
        top.close()
        _check_whole(manifest, top)
        return manifest


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder, absolute: graphs are opened later, from wherever the process is by then.
        manifest: Its manifest.
        text_embeddings: ``(8, embed_dim)`` float32, one row a prompt.
    """

    path: Path
    manifest: Manifest
    text_embeddings: NDArray[np.float32]

    @classmethod
    def load(cls, bundle: str | os.PathLike[str] = "ldp-nano") -> Bundle:
        """Finds a bundle and verifies its manifest, the hash and size of every file, and the text embeddings.

        Args:
            bundle: A name or a folder, as for ``find_bundle``.

        Raises:
            BundleError: The bundle is missing, damaged, or of an unknown schema.
        """
        folder = find_bundle(bundle)
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            _verify_file(folder, name, entry)
        for precisions in manifest.graphs.values():
            for graph in precisions.values():
                for name in _external_names(folder, graph):
                    if name not in manifest.files:
                        raise BundleError(
                            f"{folder / MANIFEST_FILE}: expected {name!r}, which {graph!r} keeps weights in, "
                            f"among 'files', came no such entry; {_MEND_MANIFEST}"
                        )
        return cls(folder.absolute(), manifest, _load_text_embeddings(folder, manifest.clip.embed_dim))

    def graph(self, kind: str, precision: str = "fp32") -> Path:
        """The ONNX file of a graph.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            precision: ``"fp32"`` or ``"fp16"``.

        Raises:
            BundleError: The bundle has no such graph.
        """
        files = self.manifest.graphs[kind]
        if precision not in files:
            raise BundleError(
                f"expected a {precision} {kind} graph in bundle {self.manifest.name!r}, "
                f"came {', '.join(files)}; choose that precision or {_MEND_MANIFEST}"
            )
        return self.path / files[precision]

    @property
    def content(self) -> str:
        """SHA-256 over the hashes of all files: equal for equal content, wherever the bundle lies."""
        lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(self.manifest.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def search_folders() -> list[Path]:
    """Where bundles are looked for by name, first wins.

    ``$LDP_BUNDLES``, ``./models``, the repository's ``models`` beside the package, ``models`` in the package.
    """
    package = Path(__file__).resolve().parent
    folders = [Path(part) for part in os.environ.get(ENV_BUNDLES, "").split(os.pathsep) if part]
    folders.append(Path("models"))
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "models")
    folders.append(package / "models")
    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    return list(distinct.values())


def list_bundles() -> dict[str, Path]:
    """The bundles that can be found by name: folder name -> folder. Nothing is verified."""
    found: dict[str, Path] = {}
    for folder in search_folders():
        for manifest in sorted(folder.glob(f"*/{MANIFEST_FILE}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return found


def find_bundle(name_or_dir: str | os.PathLike[str]) -> Path:
    """Finds a bundle's folder.

    Args:
        name_or_dir: A folder with ``bundle.json``, or the name of one in ``search_folders``.

    Raises:
        BundleError: There is none; the message lists where it was looked for and which bundles exist.
    """
    direct = Path(name_or_dir)
    if (direct / MANIFEST_FILE).is_file():
        return direct
    bundles = list_bundles()
    name = os.fspath(name_or_dir)
    if name in bundles:
        return bundles[name]
    looked = ", ".join(str(folder) for folder in search_folders())
    have = f"found there: {', '.join(bundles)}" if bundles else "found no bundle there"
    raise BundleError(
        f"expected a folder with {MANIFEST_FILE} or the name of a bundle, came {name!r}; looked in {looked}; "
        f"{have}; give one of these, or set {ENV_BUNDLES} to the folder that holds yours"
    )


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``bundle.json`` alone; the files that it lists are not touched.

    Raises:
        BundleError: It is missing, no JSON, or wrong in a field.
    """
    path = folder / MANIFEST_FILE
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_MEND_FILES}") from error
    except ValueError as error:  # JSON or UTF-8
        raise BundleError(f"{path}: expected JSON, came {error}; {_MEND_FILES}") from error
    return Manifest.from_json(value, str(path))


def write_manifest(folder: Path, manifest: Manifest, extra_files: Iterable[str] = ()) -> Manifest:
    """Hashes the bundle's files and writes ``bundle.json`` last and in one step.

    Hashed are the graphs, the files that they keep weights in, the text embeddings and ``extra_files``; the
    ``files`` that ``manifest`` came with are replaced.

    Args:
        folder: The bundle's folder, which holds the files already.
        manifest: What to write.
        extra_files: More files to list, relative to the folder with forward slashes.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A file is missing or a field would not load again.
    """
    names = {TEXT_EMBEDDINGS_FILE, *extra_files}
    for graph in {file for precisions in manifest.graphs.values() for file in precisions.values()}:
        names.add(graph)
        names.update(_external_names(folder, graph))
    files = {}
    for name in sorted(names):
        path = _inside(folder, name)
        files[name] = FileEntry(sha256_file(path), path.stat().st_size)
    written = dataclasses.replace(manifest, files=files)
    try:
        text = json.dumps(written.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: expected plain JSON values, came {error}; convert them"
        ) from error
    written = Manifest.from_json(json.loads(text), str(folder / MANIFEST_FILE))
    temporary = folder / f".{MANIFEST_FILE}.{os.getpid()}"
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / MANIFEST_FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = _inside(folder, name)
    try:
        size = path.stat().st_size
        digest = sha256_file(path) if size == entry.size else ""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_MEND_FILES}") from error
    if size != entry.size:
        raise BundleError(f"{path}: expected {entry.size} bytes, came {size}; {_MEND_FILES}")
    if digest != entry.sha256:
        raise BundleError(f"{path}: expected SHA-256 {entry.sha256}, came {digest}; {_MEND_FILES}")


def _inside(folder: Path, name: str) -> Path:
    """The path of a file of the bundle, which must exist and, links followed, lie inside the folder."""
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path}: expected a file of the bundle, came none; {_MEND_FILES}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"{path}: expected a file inside the bundle, came a link to {path.resolve()}; copy the file there"
        )
    return path


def _external_names(folder: Path, graph: str) -> set[str]:
    """Names inside the bundle of the files that a graph keeps weights in."""
    path = _inside(folder, graph)
    try:
        locations = external_files(path)
    except ValueError as error:
        raise BundleError(f"{path}: expected an ONNX graph, came something else ({error}); {_MEND_FILES}") from error
    names = set()
    for location in locations:
        name = str(PurePosixPath(graph).parent / location)
        if (reason := _unsafe(location)) is not None:
            raise BundleError(
                f"{path}: expected weights in a file inside the bundle, came {location!r} ({reason}); {_MEND_MANIFEST}"
            )
        names.add(name)
    return names


def _load_text_embeddings(folder: Path, embed_dim: int) -> NDArray[np.float32]:
    path = folder / TEXT_EMBEDDINGS_FILE
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(
            f"{path}: expected a plain NumPy array, came something else ({error}); {_MEND_FILES}"
        ) from error
    if embeddings.shape != (PROMPTS, embed_dim) or embeddings.dtype != np.float32:
        raise BundleError(
            f"{path}: expected shape ({PROMPTS}, {embed_dim}) float32, "
            f"came {embeddings.shape} {embeddings.dtype}; {_MEND_FILES}"
        )
    if not np.isfinite(embeddings).all():
        raise BundleError(f"{path}: expected finite numbers, came NaN or Inf; {_MEND_FILES}")
    return np.ascontiguousarray(embeddings)


# The schema, field by field. A check returns a value typed, or raises _UnfitError with what it expected.


class _UnfitError(Exception):
    """A value is not what its field expects; the message says what that is."""


class _Object:
    """A JSON object whose fields are taken one by one; what nobody took is an unknown field."""

    def __init__(self, value: object, where: str, prefix: str = "") -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(value, dict):
            field = f"field {prefix[:-1]!r}: " if prefix else ""
            raise BundleError(f"{where}: {field}expected an object, came {_shown(value)}; {_MEND_MANIFEST}")
        self.value: dict[str, Any] = value
        self._left = dict.fromkeys(value)

    def error(self, name: str, expected: str, came: object) -> BundleError:
        return BundleError(
            f"{self.where}: field {self.prefix + name!r}: expected {expected}, came {_shown(came)}; {_MEND_MANIFEST}"
        )

    def take(self, name: str, check: Callable[[object], Any]) -> Any:
        if name not in self.value:
            raise BundleError(f"{self.where}: field {self.prefix + name!r} is missing; {_MEND_MANIFEST}")
        self._left.pop(name, None)
        try:
            return check(self.value[name])
        except _UnfitError as unfit:
            raise self.error(name, str(unfit), self.value[name]) from None

    def child(self, name: str) -> _Object:
        return _Object(self.take(name, lambda value: value), self.where, f"{self.prefix}{name}.")

    def children(self, name: str) -> list[_Object]:
        items = self.take(name, _list)
        return [_Object(item, self.where, f"{self.prefix}{name}[{i}].") for i, item in enumerate(items)]

    def free(self) -> dict[str, Any]:
        """The whole object, whatever it holds."""
        return self.value

    def close(self) -> None:
        if self._left:
            unknown = self.prefix + next(iter(self._left))
            raise BundleError(
                f"{self.where}: field {unknown!r} is not part of schema version {SCHEMA_VERSION}; {_MEND_MANIFEST}"
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _UnfitError("a text")
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


def _integer(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _UnfitError(f"an integer of at least {least}")
        return value

    return check


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise _UnfitError("a finite number")
    return float(value)


def _not_zero(value: object) -> float:
    if (number := _number(value)) == 0:
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
    if (reason := _unsafe(name)) is not None:
        raise _UnfitError(f"a file inside the bundle ({reason})")
    return name


def _unsafe(name: str) -> str | None:
    """Why a name cannot be that of a file in the bundle, or None."""
    if "\\" in name or ":" in name or "\0" in name:
        return "only forward slashes, no drive"
    if name.startswith("/"):
        return "no absolute path"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "no '.', '..' or empty part"
    return None


def _sha256(value: object) -> str:
    text = _text(value)
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise _UnfitError("64 hexadecimal digits in lower case")
    return text


def _clip(fields: _Object) -> ClipSpec:
    spec = ClipSpec(
        architecture=fields.take("architecture", _text),
        patch=fields.take("patch", _integer(1)),
        window=fields.take("window", _integer(1)),
        overlap=fields.take("overlap", _integer(0)),
        mean=fields.take("mean", _three(lambda number: True, "numbers")),
        std=fields.take("std", _three(lambda number: number > 0, "numbers above zero")),
        embed_dim=fields.take("embed_dim", _integer(1)),
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
        offset=fields.take("offset", _number),
        temperature=fields.take("temperature", _not_zero),
    )
    fields.close()
    return prompt


def _padding(fields: _Object) -> Padding:
    padding = Padding(
        multiple=fields.take("multiple", _integer(1)),
        mode=fields.take("mode", _one_of((PADDING_MODE,))),
    )
    fields.close()
    return padding


def _graphs(fields: _Object) -> dict[str, dict[str, str]]:
    graphs: dict[str, dict[str, str]] = {}
    for kind in GRAPHS:
        child = fields.child(kind)
        present = [precision for precision in GRAPH_PRECISIONS if precision == "fp32" or precision in child.value]
        graphs[kind] = {precision: child.take(precision, _file_name) for precision in present}
        child.close()
    fields.close()
    return graphs


def _files(fields: _Object) -> dict[str, FileEntry]:
    files = {}
    for name in fields.value:
        if name == MANIFEST_FILE or (reason := _unsafe(name)) is not None:
            reason = "not the manifest itself" if name == MANIFEST_FILE else reason
            raise BundleError(
                f"{fields.where}: field 'files': expected files inside the bundle ({reason}), came {name!r}; "
                f"{_MEND_MANIFEST}"
            )
        entry = fields.child(name)
        files[name] = FileEntry(sha256=entry.take("sha256", _sha256), size=entry.take("size", _integer(0)))
        entry.close()
    return files


def _check_whole(manifest: Manifest, top: _Object) -> None:
    """The rules that tie several fields together."""
    if len(manifest.prompts) != PROMPTS:
        raise top.error("prompts", f"{PROMPTS} prompts", len(manifest.prompts))
    for name in FORMATS:
        if not any(prompt.format == name for prompt in manifest.prompts):
            raise top.error("prompts", f"at least one prompt of format {name}", [p.format for p in manifest.prompts])
    multiple = math.lcm(_NETWORK_MULTIPLE, manifest.clip.patch)
    if manifest.padding.multiple % multiple:
        raise top.error("padding.multiple", f"a multiple of {multiple}", manifest.padding.multiple)
    needed = {TEXT_EMBEDDINGS_FILE: "text embeddings"}
    for kind, precisions in manifest.graphs.items():
        needed |= {file: f"graphs.{kind}.{precision}" for precision, file in precisions.items()}
    for name, what in needed.items():
        if name not in manifest.files:
            raise BundleError(
                f"{top.where}: field 'files': expected an entry for {name!r} ({what}), came none; {_MEND_MANIFEST}"
            )
