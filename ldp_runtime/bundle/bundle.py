"""The bundle: a folder with graphs, text embeddings and the manifest ``bundle.json`` that hashes them.

Loading verifies everything before anything is used. The writing side is here too, for the exporter, so that
one module knows the schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import (
    ENGINE_FOLDER,
    ENGINE_PRECISION,
    ENGINE_PRECISIONS,
    FLAVOURS,
    EngineEntry,
    Shape,
    ShapeRange,
    architecture_number,
    nearest,
)
from ldp_runtime.bundle.npy_files import HEADER_BYTES, read_npy
from ldp_runtime.bundle.onnx_files import ExternalData, GraphFile, read_graph
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.files import write_whole
from ldp_runtime.stages.blur_map import DP_AWARE, ENSEMBLES, FORMATS
from ldp_runtime.stages.geometry import PADDING_MODE, Padding

SCHEMA = "ldp-bundle"
SCHEMA_VERSION = 1
MANIFEST_FILE = "bundle.json"
TEXT_EMBEDDINGS_FILE = "text_embeddings.npy"
SELFTEST_FILE = "selftest.npz"
"""Optional: a pair and what shall become of it, see ``ldp_runtime.selftest``."""
PROMPTS = 8
GRAPHS = ("clip", "deblur")
GRAPH_PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "fp8-fp16")
"""Of graphs: "int8" leaves in FP32 what is not quantised; those that engines are built from leave it in FP16."""

QUANTIZED_PRECISIONS = ("int8", "fp8")
"""What ``ldp-export quantize`` makes; "fp8" is for engines alone."""

BLUR_METHODS = ("dense", "patch")
NETWORK_INPUTS = ("logits", "map")
ENV_BUNDLES = "LDP_BUNDLES"

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

_MEND_FILES = "get the bundle again or export it again with ldp-export onnx"
_MEND_MANIFEST = "export the bundle again with ldp-export onnx"
_NETWORK_MULTIPLE = 16
_MAX_INTEGER = 2**53  # what every JSON reader keeps exactly
_MAX_NAME = 200


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
class BlurMapSpec:
    """How the blur map is estimated and in which form the deblur graph takes it.

    A manifest without the field ``blur_map`` has these defaults, the paper's.

    Attributes:
        method: One of ``BLUR_METHODS``. "dense": a value a token, from CLIP's dense features of windows (Eq. 4 to 6).
            "patch": a value a patch of the image, from CLIP's pooled feature, as the authors' released code has it
            (``patch_blur_map``); then ``clip.window`` is the side of the image that CLIP sees of a patch.
        network_input: One of ``NETWORK_INPUTS``. "logits": ``blur_logits (1, 1, any, any)``, unnormalised. "map":
            ``blur_map (1, 1, H, W)`` in [0, 1], at the size of the padded pair.
        patch: Side in px of a patch of the image with method "patch"; None with "dense".
    """

    method: str = "dense"
    network_input: str = "logits"
    patch: int | None = None


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
        training: Provenance of the weights.
        parity: Figures measured at export.
        evaluation: Figures of ``ldp-export evaluate``.
        quantization: Precision -> how its quantised graphs were made and what they cost; a manifest without the field
            has none.
        licences: Licences of weights and data.
        engines: Built TensorRT engines. They carry their own hashes: one for another GPU need not be here.
        files: Hash and size of every file, by its path inside the bundle with forward slashes.
    """

    name: str
    created: str
    network: Mapping[str, Any]
    clip: ClipSpec
    prompts: tuple[Prompt, ...]
    ensemble: str | int
    padding: Padding
    graphs: Mapping[str, Mapping[str, str]]
    opset: int
    tools: Mapping[str, str]
    blur_map: BlurMapSpec = BlurMapSpec()
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantization: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    files: Mapping[str, FileEntry] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, in the order of the schema."""
        value = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        if self.blur_map == BlurMapSpec():
            del value["blur_map"]
        if not self.quantization:
            del value["quantization"]
        return value

    @property
    def blur_cell(self) -> int:
        """Side in px of the square of the image that one blur logit stands for."""
        return self.blur_map.patch or self.clip.patch

    def graph_names(self, kind: str) -> tuple[set[str], set[str]]:
        """Names of the inputs and of the outputs of a graph, ``"clip"`` or ``"deblur"``."""
        if kind == "deblur":
            return {"pair", f"blur_{self.blur_map.network_input}"}, {"restored"}
        if self.blur_map.method == "patch":
            return {"patches"}, {"features"}
        return {"stereo", "center"}, {"stereo_features", "center_features"}

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
            network=_network(top.child("network")),
            clip=_clip(top.child("clip")),
            prompts=tuple(_prompt(child) for child in top.children("prompts")),
            ensemble=top.take("ensemble", _ensemble),
            padding=_padding(top.child("padding")),
            graphs=_graphs(top.child("graphs")),
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


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder, absolute: graphs are opened later, from wherever the process is by then.
        manifest: Its manifest.
        text_embeddings: ``(prompts, embed_dim)`` float32, one row a prompt.
        weights: Graph file -> the files besides it that it keeps weights in, by their names in the manifest.
        states: File -> its state when it was verified, see ``_state``.
    """

    path: Path
    manifest: Manifest
    text_embeddings: NDArray[np.float32]
    weights: Mapping[str, tuple[str, ...]]
    states: Mapping[str, tuple[int, ...]] = dataclasses.field(repr=False)

    @classmethod
    def load(cls, bundle: str | os.PathLike[str] = "ldp-nano") -> Bundle:
        """Finds a bundle and verifies it: the manifest, the hash and size of every file, and what the files hold.

        No byte of a file is parsed before its hash has been checked, and each file is opened once for both.

        Args:
            bundle: A name or a folder, as for ``find_bundle``.

        Raises:
            BundleError: The bundle is missing, damaged, of an unknown schema, or holds what it may not.
        """
        folder = find_bundle(bundle)
        manifest = read_manifest(folder)
        graphs = {graph for precisions in manifest.graphs.values() for graph in precisions.values()}
        weights, states, embeddings = {}, {}, None
        for name, entry in manifest.files.items():
            with _verified(folder, name, entry) as file:
                states[name] = _state(os.fstat(file.fileno()))
                if name in graphs:
                    graph = _read_graph(folder / name, file, manifest)
                    weights[name] = tuple(sorted(_weights(folder, name, graph, manifest.files)))
                if name == TEXT_EMBEDDINGS_FILE:
                    embeddings = _read_text_embeddings(folder / name, file, manifest)
        assert embeddings is not None  # the schema demands the entry
        return cls(folder.absolute(), manifest, embeddings, weights, states)

    def graph(self, kind: str, precision: str = "fp32") -> Path:
        """The ONNX file of a graph.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            precision: A name of ``GRAPH_PRECISIONS``.

        Raises:
            BundleError: The bundle has no such graph, or it is no longer the one that was verified.
        """
        name = self._graph_file(kind, precision)
        for part in self.weights[name]:
            self.file(part)
        return self.file(name)

    def file(self, name: str) -> Path:
        """A file that was verified and is still the same.

        Args:
            name: A name of the manifest's ``files``.

        Raises:
            BundleError: It was replaced or written to since.
        """
        path = self.path / name
        try:
            same = _state(path.stat()) == self.states[name]
        except OSError:
            same = False
        if not same:
            raise BundleError(f"{path}: expected the file that was verified, came another; load the bundle again")
        return path

    def _graph_file(self, kind: str, precision: str) -> str:
        files = self.manifest.graphs[kind]
        if precision not in files:
            arithmetic = precision.partition("-")[0]
            quantized = arithmetic in QUANTIZED_PRECISIONS
            mend = f"make it with ldp-export quantize --precision {arithmetic}" if quantized else _MEND_MANIFEST
            raise BundleError(
                f"expected a {precision} {kind} graph in bundle {self.manifest.name!r}, "
                f"came {', '.join(files)}; choose another precision or {mend}"
            )
        return files[precision]

    def graph_hash(self, kind: str, precision: str = "fp32") -> str:
        """SHA-256 over a graph and the files that it keeps weights in, from the hashes of the manifest.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            precision: A name of ``GRAPH_PRECISIONS``.

        Raises:
            BundleError: The bundle has no such graph.
        """
        name = self._graph_file(kind, precision)
        names = (name, *self.weights[name])
        return hashlib.sha256("".join(f"{self.manifest.files[n].sha256}\n" for n in names).encode()).hexdigest()

    def find_engine(
        self,
        kind: str,
        *,
        flavour: str,
        version: str,
        arch: str,
        shapes: Mapping[str, Shape],
        precision: str = ENGINE_PRECISION,
    ) -> EngineEntry:
        """The engine to run; one made from another graph than the bundle has now never comes.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            flavour: A name of ``engines.FLAVOURS``.
            version: Version of the TensorRT that will run it.
            arch: Architecture of the GPU that will run it, such as ``"sm_89"``.
            shapes: The shape of each input, as from ``engines.deblur_shapes`` and ``engines.clip_shapes``.
            precision: A name of ``engines.ENGINE_PRECISIONS``.

        Raises:
            BackendError: There is none; the message says what there is and how to build one.
            BundleError: The bundle has no graph that engines of this precision are built from.
        """
        graph = self.graph_hash(kind, ENGINE_PRECISIONS[precision])
        alike = [e for e in self.manifest.engines if (e.kind, e.precision) == (kind, precision)]
        fresh = [e for e in alike if e.made_from(graph)]
        same = [e for e in fresh if (e.flavour, e.version) == (flavour, version) and arch in e.targets]
        if (found := nearest(same, shapes)) is not None:
            return found
        wanted = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        have = "; ".join(map(str, fresh)) or "no engine of its graph"
        raise BackendError(
            f"expected an engine of bundle {self.manifest.name!r}: {kind} in {precision} by {FLAVOURS[flavour]} "
            f"{version} for {arch} that takes {wanted}; came {have}; build one with ldp-export engine {self.path} "
            f"--flavour {flavour} --arch {arch} --precision {precision}"
        )

    def read_engine(self, entry: EngineEntry) -> bytes:
        """The bytes of an engine, which are those that were built.

        Args:
            entry: One of the manifest's ``engines``.

        Raises:
            BundleError: The file is missing or damaged.
        """
        path = self.path / entry.file
        mend = f"build it again with ldp-export engine {self.path}"
        try:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise BundleError(f"{path}: expected an engine inside the bundle, came a link to elsewhere; {mend}")
            with _opened(path) as file:
                content = file.read(entry.size + 1)
        except OSError as error:
            raise BundleError(f"{path}: the engine cannot be read ({error.strerror}); {mend}") from error
        digest = hashlib.sha256(content).hexdigest()
        if (len(content), digest) != (entry.size, entry.sha256):
            came = f"{len(content)} bytes with {digest}" if len(content) <= entry.size else "more bytes"
            raise BundleError(
                f"{path}: expected an engine of {entry.size} bytes with SHA-256 {entry.sha256}, came {came}; {mend}"
            )
        return content

    @property
    def content(self) -> str:
        """SHA-256 over the hashes of all files: equal for equal content, wherever the bundle lies."""
        lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(self.manifest.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def search_folders() -> list[Path]:
    """Where bundles are looked for by name, first wins.

    ``$LDP_BUNDLES``, ``./models``, the repository's ``models`` beside the package, ``models`` in the package.
    """
    package = Path(__file__).resolve().parent.parent
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
    try:
        if (direct / MANIFEST_FILE).is_file():
            return direct
    except OSError as error:
        raise BundleError(
            f"{direct}: expected the folder of a bundle, came {error.strerror}; check the name"
        ) from error
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
        with _opened(_inside(folder, MANIFEST_FILE)) as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_MEND_FILES}") from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Checks the content of ``bundle.json``.

    Args:
        content: Its bytes; more than ``MAX_MANIFEST_BYTES`` are not parsed.
        path: Names the file in errors.

    Raises:
        BundleError: It is too large or too deep, no JSON, or wrong in a field.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, came more; {_MEND_FILES}")
    try:
        value = json.loads(content, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise BundleError(f"{path}: {_TOO_DEEP}; {_MEND_FILES}") from None
    except ValueError as error:  # JSON or UTF-8
        raise BundleError(f"{path}: expected JSON, came {error}; {_MEND_FILES}") from error
    _check_depth(value, path)
    return Manifest.from_json(value, str(path))


_TOO_DEEP = f"expected at most {MAX_DEPTH} objects and lists inside each other, came more"


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
        raise BundleError(f"{path}: {_TOO_DEEP}; {_MEND_FILES}")


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
        with _opened(_inside(folder, graph)) as file:
            names.update(_weights(folder, graph, _read_graph(folder / graph, file, manifest)))
    files = {}
    for name in sorted(names):
        path = _inside(folder, name)
        files[name] = FileEntry(sha256_file(path), path.stat().st_size)
    return save_manifest(folder, dataclasses.replace(manifest, files=files))


def save_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes ``bundle.json`` in one step; the hashes of ``files`` stay what ``manifest`` says.

    Args:
        folder: The bundle's folder.
        manifest: What to write.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A field would not load again.
        OSError: The folder cannot be written.
    """
    try:
        text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: expected plain JSON values, came {error}; convert them"
        ) from error
    written = Manifest.from_json(json.loads(text), str(folder / MANIFEST_FILE))
    write_whole({folder / MANIFEST_FILE: (text + "\n").encode()})
    return written


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _verified(folder: Path, name: str, entry: FileEntry) -> Iterator[io.BufferedReader]:
    """Opens a file of the bundle whose size and hash have been checked; what is read there is what was hashed."""
    path = _inside(folder, name)
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise BundleError(f"{path}: expected {entry.size} bytes, came {size}; {_MEND_FILES}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise BundleError(f"{path}: expected SHA-256 {entry.sha256}, came {digest}; {_MEND_FILES}")
            file.seek(0)
            yield file
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_MEND_FILES}") from error


def _opened(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading, and does not wait for whoever writes to a pipe.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return open(descriptor, "rb")


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What differs when a file was replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _inside(folder: Path, name: str) -> Path:
    """The path of a file of the bundle, which must exist and, links followed, lie inside the folder."""
    path = folder / name
    try:
        if not path.is_file():
            raise BundleError(f"{path}: expected a file of the bundle, came none; {_MEND_FILES}")
        real = path.resolve()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_MEND_FILES}") from error
    if not real.is_relative_to(folder.resolve()):
        raise BundleError(f"{path}: expected a file inside the bundle, came a link to {real}; copy the file there")
    return path


def _read_graph(path: Path, file: io.BufferedReader, manifest: Manifest) -> GraphFile:
    """Checks an ONNX file, and that its opset is what the manifest says."""
    try:
        size = os.fstat(file.fileno()).st_size
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        graph = read_graph(data)
    except ValueError as error:
        raise BundleError(f"{path}: expected an ONNX graph, came something else ({error}); {_MEND_FILES}") from error
    if graph.opset != manifest.opset:
        raise BundleError(
            f"{path}: expected opset {manifest.opset}, as the manifest says, came {graph.opset}; {_MEND_MANIFEST}"
        )
    return graph


def _weights(
    folder: Path, graph: str, content: GraphFile, files: Mapping[str, FileEntry] | None = None
) -> dict[str, ExternalData]:
    """Names inside the bundle of the files that a graph keeps weights in; with ``files``, those must list them."""
    names = {}
    for data in content.external:
        name = str(PurePosixPath(graph).parent / data.location)
        if (reason := _unsafe(data.location)) is not None:
            raise BundleError(
                f"{folder / graph}: expected weights in a file inside the bundle, came {data.location!r} ({reason}); "
                f"{_MEND_MANIFEST}"
            )
        if files is not None and name not in files:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: expected {name!r}, which {graph!r} keeps weights in, "
                f"among 'files', came no such entry; {_MEND_MANIFEST}"
            )
        if files is not None and data.offset + data.length > files[name].size:
            raise BundleError(
                f"{folder / graph}: expected weights within the {files[name].size} bytes of {name!r}, came bytes "
                f"{data.offset} to {data.offset + data.length}; {_MEND_FILES}"
            )
        names[name] = data
    return names


def _read_text_embeddings(path: Path, file: io.BufferedReader, manifest: Manifest) -> NDArray[np.float32]:
    shape = (len(manifest.prompts), manifest.clip.embed_dim)
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    try:
        embeddings = read_npy(file.read(2 * HEADER_BYTES + size))
    except ValueError as error:
        raise BundleError(
            f"{path}: expected a plain NumPy array, came something else ({error}); {_MEND_FILES}"
        ) from error
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        raise BundleError(
            f"{path}: expected shape {shape} float32, came {embeddings.shape} {embeddings.dtype}; {_MEND_FILES}"
        )
    if not np.isfinite(embeddings).all():
        raise BundleError(f"{path}: expected finite numbers, came NaN or Inf; {_MEND_FILES}")
    return embeddings.astype(np.float32, copy=False)  # the machine's byte order


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
        if len(items) > MAX_FILES:
            raise self.error(name, f"at most {MAX_FILES} entries", len(items))
        return [_Object(item, self.where, f"{self.prefix}{name}[{i}].") for i, item in enumerate(items)]

    def close(self) -> None:
        if self._left:
            unknown = self.prefix + next(iter(self._left))
            raise BundleError(
                f"{self.where}: field {unknown!r} is not part of schema version {SCHEMA_VERSION}; {_MEND_MANIFEST}"
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
    if (reason := _unsafe(name)) is not None:
        raise _UnfitError(f"a file inside the bundle ({reason})")
    return name


def _graph_name(value: object) -> str:
    name = _file_name(value)
    if not name.endswith(".onnx"):  # backends tell formats by the suffix, and know others that are not checked here
        raise _UnfitError("a file whose name ends in .onnx")
    return name


def _unsafe(name: str) -> str | None:
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


def _clip(fields: _Object) -> ClipSpec:
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


def _graphs(fields: _Object) -> dict[str, dict[str, str]]:
    graphs: dict[str, dict[str, str]] = {}
    for kind in GRAPHS:
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
            f"{fields.where}: field 'files': expected at most {MAX_FILES} files, came {len(fields.value)}; "
            f"{_MEND_MANIFEST}"
        )
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
    if sum(entry.size for entry in files.values()) > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{fields.where}: field 'files': expected at most {MAX_BUNDLE_BYTES} bytes in all files together, came "
            f"more; {_MEND_MANIFEST}"
        )
    return files


def _check_whole(manifest: Manifest, top: _Object) -> None:
    """The rules that tie several fields together."""
    dense = manifest.blur_map.method == "dense"
    if len(manifest.prompts) != (PROMPTS if dense else 1):
        raise top.error("prompts", f"{PROMPTS} prompts" if dense else "one prompt", len(manifest.prompts))
    for name in FORMATS if dense else (DP_AWARE,):
        if not any(prompt.format == name for prompt in manifest.prompts):
            raise top.error("prompts", f"at least one prompt of format {name}", [p.format for p in manifest.prompts])
    multiple = math.lcm(_NETWORK_MULTIPLE, manifest.clip.patch) if dense else _NETWORK_MULTIPLE
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
