"""Shards of rendered scenes: ``scenes-NNNN.npz``, not compressed, so that their arrays are mapped from the file."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

SHARD_PATTERN = "scenes-*.npz"
FIELDS = ("left", "right", "target", "coc", "disparity")
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, struct.error)
"""What reading a file that is no shard raises."""

_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


def scenes_in_shard(path: Path) -> int:
    """How many scenes a shard holds; 0 where there is no such file, or it is damaged."""
    try:
        return len(map_field(path, "left"))
    except DAMAGED:
        return 0


def map_field(path: Path, field: str) -> NDArray[Any]:
    """An array of an .npz file, mapped read-only where it is not compressed."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{field}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            with archive.open(member) as file:
                return np.asarray(npy.read_array(file, allow_pickle=False))
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:])
        file.seek(name + extra, 1)
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
