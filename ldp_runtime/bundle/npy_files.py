"""Untrusted files of NumPy: no pickles, and no more memory than the file has bytes for."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 1 << 12
"""Longest header of an array, in bytes."""


def read_npy(content: bytes) -> NDArray[Any]:
    """Reads the content of a ``.npy`` file.

    Args:
        content: All of it.

    Returns:
        The array, of numbers, in memory of its own.

    Raises:
        ValueError: It is no such file, holds objects or texts, or another number of bytes than its header says.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the format")
        shape, by_columns, dtype = readers[version](stream, max_header_size=HEADER_BYTES)
    except Exception as error:  # a damaged header gives nearly any exception
        raise ValueError(f"no array: {' '.join(str(error).split())[:200]}") from error
    if dtype.kind not in "biuf" or any(length < 0 for length in shape):
        raise ValueError(f"{shape} {dtype}")
    if len(content) != stream.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for {shape} {dtype}")
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    return np.array(flat.reshape(shape, order="F" if by_columns else "C"), order="C")


def read_npz(path: Path, names: Iterable[str], limit: int) -> dict[str, NDArray[Any]]:
    """Reads arrays of a ``.npz`` file.

    Args:
        path: The file.
        names: Which arrays.
        limit: Bytes that the file may have, and that the arrays may take together.

    Raises:
        ValueError: It is no such file, lacks an array, or is larger.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        packed = stream.read(limit + 1)
    if len(packed) > limit:
        raise ValueError(f"a file of more than {limit} bytes")
    arrays, left = {}, limit
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as file:
            for name in names:
                info = file.getinfo(f"{name}.npy")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{name} is packed with method {info.compress_type}")  # LZMA claims memory
                with file.open(info) as member:
                    content = member.read(left + 1)
                if len(content) > left:
                    raise ValueError(f"arrays of more than {limit} bytes")
                left -= len(content)
                arrays[name] = read_npy(content)
    except ValueError:
        raise
    except Exception as error:  # a damaged archive gives nearly any exception
        raise ValueError(f"no archive of arrays: {' '.join(str(error).split())[:200]}") from error
    return arrays
