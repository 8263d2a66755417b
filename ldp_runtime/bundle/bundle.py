"""The bundle: a folder with graphs, text embeddings and the manifest ``bundle.json`` that hashes them.

Loading verifies everything before anything is used. The exporter writes bundles with the functions here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import (
    ENGINE_PRECISION,
    FLAVOURS,
    EngineEntry,
    EngineFile,
    Shape,
    nearest,
)
from ldp_runtime.bundle.find import find_bundle
from ldp_runtime.bundle.manifest import (
    MANIFEST_FILE,
    TEXT_EMBEDDINGS_FILE,
    FileEntry,
    Manifest,
)
from ldp_runtime.bundle.schema import (
    FIX_FILES,
    FIX_MANIFEST,
    MAX_MANIFEST_BYTES,
    manifest_from_json,
    parse_manifest,
)
from ldp_runtime.bundle.verify import (
    check_graph,
    external_weights,
    file_state,
    inside,
    open_file,
    read_text_embeddings,
    verified,
)
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.files import write_whole
from ldp_runtime.threads import each


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder, absolute: graphs are opened later, when the working folder may be another.
        manifest: Its manifest.
        text_embeddings: ``(prompts, embed_dim)`` float32, one row per prompt; None where the network reads
            no blur map.
        weights: Graph file -> the files with its external weights, by their names in the manifest.
        states: File -> its state when it was verified, see ``file_state``.
    """

    path: Path
    manifest: Manifest
    text_embeddings: NDArray[np.float32] | None
    weights: Mapping[str, tuple[str, ...]]
    states: Mapping[str, tuple[int, ...]] = dataclasses.field(repr=False)

    @classmethod
    def load(cls, bundle: str | os.PathLike[str] = "ldp-nano") -> Bundle:
        """Finds a bundle and verifies it: the manifest, the size and hash of every file, and their content.

        No byte of a file is parsed before its hash has been checked, and each file is opened once for both.

        Args:
            bundle: A name or a folder, as for ``find_bundle``.

        Raises:
            BundleError: The bundle is missing or damaged, its schema is unknown, or its content is not allowed.
        """
        folder = find_bundle(bundle)
        manifest = read_manifest(folder)
        graphs = {graph for precisions in manifest.graphs.values() for graph in precisions.values()}
        weights, states = {}, {}
        embeddings: list[NDArray[np.float32]] = []

        def verify(name: str) -> None:
            with verified(folder, name, manifest.files[name]) as file:
                states[name] = file_state(os.fstat(file.fileno()))
                if name in graphs:
                    graph = check_graph(folder / name, file, manifest)
                    weights[name] = tuple(sorted(external_weights(folder, name, graph, manifest.files)))
                if name == TEXT_EMBEDDINGS_FILE and manifest.clip is not None:
                    shape = (len(manifest.prompts), manifest.clip.embed_dim)
                    embeddings.append(read_text_embeddings(folder / name, file, shape))

        each(verify, list(manifest.files))
        return cls(folder.absolute(), manifest, embeddings[0] if embeddings else None, weights, states)

    def graph(self, kind: str, precision: str = "fp32") -> Path:
        """The ONNX file of a graph.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            precision: A name of ``GRAPH_PRECISIONS``.

        Raises:
            BundleError: The bundle has no such graph, or it changed since it was verified.
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
            BundleError: It changed since.
        """
        path = self.path / name
        try:
            same = file_state(path.stat()) == self.states[name]
        except OSError:
            same = False
        if not same:
            raise BundleError(f"{path}: expected the file that was verified, got another; load the bundle again")
        return path

    def _graph_file(self, kind: str, precision: str) -> str:
        files = self.manifest.graphs[kind]
        if precision not in files:
            fix = "make it with ldp-export quantize" if precision == "int8" else FIX_MANIFEST
            if precision == "fp16" and self.manifest.origin is not None:
                fix = "another network: its import left FP16 out, since it failed"
            raise BundleError(
                f"expected a {precision} {kind} graph in bundle {self.manifest.name!r}, "
                f"got {', '.join(files)}; choose another precision or {fix}"
            )
        return files[precision]

    def graph_hash(self, kind: str, precision: str = "fp32") -> str:
        """SHA-256 over the manifest's hashes of a graph and of the files with its external weights.

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
        self, kind: str, *, flavour: str, version: str, arch: str, shapes: Mapping[str, Shape]
    ) -> EngineEntry:
        """The engine to run; engines of another graph than the bundle's current one are ignored.

        Args:
            kind: ``"clip"`` or ``"deblur"``.
            flavour: A name of ``engines.FLAVOURS``.
            version: Version of the TensorRT that will run it.
            arch: Architecture of the GPU that will run it, such as ``"sm_89"``.
            shapes: The shape of each input, as from ``engines.deblur_shapes`` and ``engines.clip_shapes``.

        Raises:
            BackendError: There is none; the message lists the others and says how to build one.
            BundleError: The bundle has no graph to build engines from.
        """
        graph = self.graph_hash(kind, ENGINE_PRECISION)
        fresh = [e for e in self.manifest.engines if e.kind == kind and e.made_from(graph)]
        same = [e for e in fresh if (e.flavour, e.version) == (flavour, version) and arch in e.targets]
        if (found := nearest(same, shapes)) is not None:
            return found
        wanted = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        have = "; ".join(map(str, fresh)) or "no engine of its graph"
        raise BackendError(
            f"expected an engine of bundle {self.manifest.name!r}: {kind} by {FLAVOURS[flavour]} "
            f"{version} for {arch} that takes {wanted}; got {have}; build one with ldp-export engine {self.path} "
            f"--flavour {flavour} --arch {arch}"
        )

    def read_engine(self, engine: EngineFile) -> bytes:
        """The verified bytes of an engine.

        Args:
            engine: One of the files of the manifest's ``engines``.

        Raises:
            BundleError: The file is missing or damaged.
        """
        path = self.path / engine.file
        fix = f"build it again with ldp-export engine {self.path}"
        try:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise BundleError(f"{path}: expected an engine inside the bundle, got a link to elsewhere; {fix}")
            with open_file(path) as file:
                content = file.read(engine.size + 1)
        except OSError as error:
            raise BundleError(f"{path}: the engine cannot be read ({error.strerror}); {fix}") from error
        digest = hashlib.sha256(content).hexdigest()
        if (len(content), digest) != (engine.size, engine.sha256):
            got = f"{len(content)} bytes with {digest}" if len(content) <= engine.size else "more bytes"
            raise BundleError(
                f"{path}: expected an engine of {engine.size} bytes with SHA-256 {engine.sha256}, got {got}; {fix}"
            )
        return content

    @property
    def content(self) -> str:
        """SHA-256 over the hashes of all files: equal for equal content in any folder."""
        lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(self.manifest.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``bundle.json`` alone; the listed files are not opened.

    Raises:
        BundleError: It is missing or no JSON, or a field is wrong.
    """
    path = folder / MANIFEST_FILE
    try:
        with open_file(inside(folder, MANIFEST_FILE)) as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {FIX_FILES}") from error
    return parse_manifest(content, path)


def write_manifest(folder: Path, manifest: Manifest, extra_files: Iterable[str] = ()) -> Manifest:
    """Hashes the bundle's files and writes ``bundle.json`` last, in one step.

    These are the graphs, their external weights, the text embeddings and ``extra_files``; they replace the ``files``
    of ``manifest``.

    Args:
        folder: The bundle's folder with the files.
        manifest: What to write.
        extra_files: More files to list, relative to the folder with forward slashes.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A file is missing or a field would not load again.
    """
    names = {*extra_files, *([TEXT_EMBEDDINGS_FILE] if manifest.reads_blur_map else [])}
    for graph in {file for precisions in manifest.graphs.values() for file in precisions.values()}:
        names.add(graph)
        with open_file(inside(folder, graph)) as file:
            names.update(external_weights(folder, graph, check_graph(folder / graph, file, manifest)))
    files = {}
    for name in sorted(names):
        path = inside(folder, name)
        files[name] = FileEntry(sha256_file(path), path.stat().st_size)
    return save_manifest(folder, msgspec.structs.replace(manifest, files=files))


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
        raise BundleError(f"{folder / MANIFEST_FILE}: expected plain JSON values, got {error}; convert them") from error
    written = manifest_from_json(json.loads(text), str(folder / MANIFEST_FILE))
    write_whole({folder / MANIFEST_FILE: (text + "\n").encode()})
    return written


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
