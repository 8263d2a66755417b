"""Verifying the files of a bundle: inside its folder, of the listed size and hash, of a content that is allowed."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.fields import FILE_NAME, FILE_NAME_RULE
from ldp_runtime.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from ldp_runtime.bundle.npy_files import HEADER_BYTES, read_npy
from ldp_runtime.bundle.onnx_files import GraphFile, read_graph
from ldp_runtime.bundle.schema import FIX_FILES, FIX_MANIFEST
from ldp_runtime.errors import BundleError


@contextmanager
def verified(folder: Path, name: str, entry: FileEntry) -> Iterator[io.BufferedReader]:
    """Opens a file of the bundle and checks its size and hash; the caller reads the same open file.

    Raises:
        BundleError: It is missing, damaged or outside the bundle.
    """
    path = inside(folder, name)
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise BundleError(f"{path}: expected {entry.size} bytes, got {size}; {FIX_FILES}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise BundleError(f"{path}: expected SHA-256 {entry.sha256}, got {digest}; {FIX_FILES}")
            file.seek(0)
            yield file
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {FIX_FILES}") from error


def open_file(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading, without waiting for the writer of a pipe.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return open(descriptor, "rb")


def file_state(status: os.stat_result) -> tuple[int, ...]:
    """Changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the bundle.

    Raises:
        BundleError: There is none, or it lies outside the folder with links resolved.
    """
    path = folder / name
    try:
        if not path.is_file():
            raise BundleError(f"{path}: expected a file of the bundle, got none; {FIX_FILES}")
        real = path.resolve()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {FIX_FILES}") from error
    if not real.is_relative_to(folder.resolve()):
        raise BundleError(f"{path}: expected a file inside the bundle, got a link to {real}; copy the file there")
    return path


def check_graph(path: Path, file: io.BufferedReader, manifest: Manifest) -> GraphFile:
    """Checks an ONNX file, and that its opset is what the manifest says.

    Raises:
        BundleError: It is no such file.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        graph = read_graph(data)
    except ValueError as error:
        raise BundleError(f"{path}: expected an ONNX graph, got something else ({error}); {FIX_FILES}") from error
    if graph.opset != manifest.opset:
        raise BundleError(
            f"{path}: expected opset {manifest.opset}, as the manifest says, got {graph.opset}; {FIX_MANIFEST}"
        )
    return graph


def external_weights(
    folder: Path, graph: str, content: GraphFile, files: Mapping[str, FileEntry] | None = None
) -> set[str]:
    """The files with a graph's external weights, by their names in the bundle; ``files``, if given, must list them.

    Raises:
        BundleError: They are not listed, end early or lie outside the bundle.
    """
    names = set()
    for data in content.external:
        name = str(PurePosixPath(graph).parent / data.location)
        if not re.search(FILE_NAME, data.location):
            raise BundleError(
                f"{folder / graph}: expected weights in {FILE_NAME_RULE}, got {data.location!r}; {FIX_MANIFEST}"
            )
        if files is not None and name not in files:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: expected {name!r}, which {graph!r} keeps weights in, "
                f"among 'files', got no such entry; {FIX_MANIFEST}"
            )
        if files is not None and data.offset + data.length > files[name].size:
            raise BundleError(
                f"{folder / graph}: expected weights within the {files[name].size} bytes of {name!r}, got bytes "
                f"{data.offset} to {data.offset + data.length}; {FIX_FILES}"
            )
        names.add(name)
    return names


def read_text_embeddings(path: Path, file: io.BufferedReader, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Text embeddings of this shape, finite and in the machine's byte order.

    Raises:
        BundleError: They are something else.
    """
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    try:
        embeddings = read_npy(file.read(2 * HEADER_BYTES + size))
    except ValueError as error:
        raise BundleError(f"{path}: expected a plain NumPy array, got something else ({error}); {FIX_FILES}") from error
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        raise BundleError(
            f"{path}: expected shape {shape} float32, got {embeddings.shape} {embeddings.dtype}; {FIX_FILES}"
        )
    if not np.isfinite(embeddings).all():
        raise BundleError(f"{path}: expected finite numbers, got NaN or Inf; {FIX_FILES}")
    return embeddings.astype(np.float32, copy=False)
