"""Disparity and depth maps: reading .npy, .pfm, 16-bit PNG and float TIFF, and filling their holes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from ldp_export.simulation.optics import FloatArray, SimulationError
from ldp_runtime.images.photo import read_photo

FORMATS = (".npy", ".pfm", ".png", ".tif", ".tiff")
_PFM_HEADER = re.compile(rb"Pf\s(?:#.*\n)*\s*(\d+)\s+(\d+)\s+([-+0-9.eE]+)\s")


def read_map(path: Path, size: tuple[int, int]) -> FloatArray:
    """Reads a map of one number per pixel.

    Args:
        path: Its suffix, one of ``FORMATS``, gives the format. A PNG file gives its grey levels as they are.
        size: ``(h, w)`` that it must have.

    Returns:
        ``(h, w)`` float32, holes as they are in the file.

    Raises:
        LDPError: The file is missing, damaged, of another format or of another size.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise SimulationError(f"{path}: expected a map that ends in {', '.join(FORMATS)}, got {suffix!r}; convert it")
    if not path.is_file():
        raise SimulationError(f"{path} does not exist; check the name and the folder")
    if suffix == ".png":
        photo = read_photo(path)
        if not photo.grey:
            raise SimulationError(f"{path}: expected a map of one channel, got a colour image; export it as grey")
        values = photo.pixels[..., 0]
    else:
        try:
            values = _read(path, suffix)
        except (OSError, ValueError, EOFError, tifffile.TiffFileError) as error:
            raise SimulationError(f"{path}: expected a map of one number per pixel, got {error}; convert it") from error
    if values.shape != size:
        raise SimulationError(
            f"{path}: expected the image's size, {size[1]} x {size[0]} px, got an array {values.shape}; scale it alike"
        )
    return values.astype(np.float32)


def fill_disparity_holes(disparity: FloatArray) -> FloatArray:
    """Fills NaN, infinite and non-positive entries of a disparity map ``(h, w)`` from the farther valid neighbour.

    Holes of a stereo disparity map are what only one camera saw, which lies behind the surface beside it: each hole
    takes the smaller of the nearest valid values to its left and right, or the nearest valid value of the map.
    """
    disparity = np.asarray(disparity, dtype=np.float32)
    valid = np.isfinite(disparity) & (disparity > 0)
    if not valid.any():
        raise SimulationError("the disparity map has no valid (finite, positive) value")
    height, width = disparity.shape
    columns = np.broadcast_to(np.arange(width), (height, width))
    before = np.maximum.accumulate(np.where(valid, columns, -1), axis=1)
    after = np.minimum.accumulate(np.where(valid, columns, width)[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(height)[:, None]
    padded = np.pad(np.where(valid, disparity, np.inf), ((0, 0), (1, 1)), constant_values=np.inf)
    filled = np.minimum(padded[rows, before + 1], padded[rows, after + 1])
    empty = ~np.isfinite(filled)
    if empty.any():
        nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
        filled = filled[tuple(nearest)]
    return filled.astype(np.float32)


def fill_depth_holes(depth: FloatArray) -> FloatArray:
    """Fills NaN and non-positive entries of a depth map ``(h, w)`` from the farther valid neighbour; infinite is far.

    Raises:
        SimulationError: There is no valid entry.
    """
    hole = ~(depth > 0)  # NaN too
    if not hole.any():
        return depth
    tiny = np.float32(np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearness = np.where(hole, np.float32(0), np.maximum(1 / depth, tiny))
    filled = fill_disparity_holes(nearness)
    return np.where(hole, 1 / filled, depth).astype(np.float32)


def _read(path: Path, suffix: str) -> np.ndarray:
    if suffix == ".npy":
        values: np.ndarray = np.load(path, allow_pickle=False)
    elif suffix == ".pfm":
        values = _parse_pfm(path.read_bytes())
    else:
        values = tifffile.imread(path)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"an array {values.shape} of {values.dtype}")
    return values


def _parse_pfm(content: bytes) -> np.ndarray:
    """The numbers of a grey PFM file, which stores the lowest row first: ``(h, w)`` float32."""
    header = _PFM_HEADER.match(content)
    if header is None:
        raise ValueError("no grey PFM file")
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    body = content[header.end() :]
    if len(body) < 4 * width * height:
        raise ValueError("a file that ends early")
    order = "<f4" if scale < 0 else ">f4"
    return np.frombuffer(body, order, width * height).reshape(height, width)[::-1].astype(np.float32)
