"""The files of a pair: both views read and compared, the blur map encoded."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldp_runtime.errors import ImageError
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.icc import match_profiles
from ldp_runtime.images.one_file import both_views
from ldp_runtime.images.orientation import upright_disparity
from ldp_runtime.images.photo import (
    SUFFIXES,
    check_suffix,
    decode_photos,
    encode_photo,
    photo_size,
    read_bytes,
    read_photo,
)
from ldp_runtime.images.pixel_capture import develop_pixel_capture, holds_samples, is_pixel_capture
from ldp_runtime.images.raw import develop_pair, raw_size
from ldp_runtime.images.raw_container import is_raw
from ldp_runtime.images.visualize import colour_blur_map

_NUMBERS = ".npy"


@dataclass(frozen=True)
class Views:
    """A pair of views that belong together.

    Attributes:
        left: The left view of the upright picture, with the metadata to keep.
        right: The right view, of the same size and depth.
        axis: Direction of the disparity in the upright picture, as for ``Deblurrer``.
        warnings: What seems wrong though the pair can be restored, a sentence each.
        notes: How the pixels were made of what the files hold, where that is more than decoding; sentences.
        linear: Whether the values are linear light, where the ICC profile says so.
    """

    left: Photo
    right: Photo
    axis: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    linear: bool | None = None

    @property
    def pixels(self) -> int:
        """How many pixels a view has."""
        height, width = self.left.pixels.shape[:2]
        return int(height * width)


File = tuple[str | os.PathLike[str], bytes]
"""The name of a file in messages, and its content."""


def read_views(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str] | None = None,
    *,
    axis: str = "horizontal",
    swap: bool = False,
    side_by_side: bool = False,
) -> Views:
    """Reads both views and checks that they belong together.

    Args:
        left: File of the left view, or one that holds both, see ``one_file``.
        right: File of the right view; None if ``left`` holds both. Two raw files are a sum and one view of it, as
            DPRSplit writes them.
        axis: How the sensor splits its pixels; a camera that was turned is known from EXIF.
        swap: The views are exchanged.
        side_by_side: ``left`` is a picture with both views abreast.

    Raises:
        ImageError: A file cannot be read, they differ in size, depth or EXIF orientation, or one file does not hold
            two views.
        LDPError: It is a raw photo, and the extra ``raw`` is not installed.
    """
    names = [left] if right is None else [left, right]
    return decode_views(
        [(name, read_bytes(Path(name))) for name in names], axis=axis, swap=swap, side_by_side=side_by_side
    )


def decode_views(
    files: Sequence[File],
    *,
    axis: str = "horizontal",
    swap: bool = False,
    side_by_side: bool = False,
    own_names: Sequence[str] | None = None,
) -> Views:
    """Decodes the content of one or two files, as ``read_views`` does.

    Args:
        files: The file of the left view and that of the right one, or one that holds both.
        axis: As for ``read_views``.
        swap: As for ``read_views``.
        side_by_side: As for ``read_views``.
        own_names: The names by which a capture app's files are known, where those in ``files`` are for messages alone.

    Raises:
        ImageError: As for ``read_views``.
        LDPError: As for ``read_views``.
    """
    names: tuple[str | os.PathLike[str], ...]
    if len(files) == 1:
        name, data = files[0]
        photos: Sequence[Photo] = both_views(name, data, side_by_side=side_by_side)
        names = f"the left view in {name}", f"the right view in {name}"
    else:
        names = tuple(name for name, _ in files)
        if side_by_side:
            raise ImageError(
                f"expected one picture with both views side by side, got {names[0]} and {names[1]}; give one file, or "
                "omit --side-by-side"
            )
        photos = _two_photos(files, own_names or [name for name, _ in files])
    order = slice(None, None, -1 if swap else 1)
    first, second = photos[order]
    first_name, second_name = names[order]
    return match_views(first, second, (first_name, second_name), axis=axis)


def _two_photos(files: Sequence[File], own_names: Sequence[str | os.PathLike[str]]) -> Sequence[Photo]:
    names = [name for name, _ in files]
    raw = [is_raw(data) for _, data in files]
    if all(raw):
        return develop_pair(*files[0], second=files[1])
    if any(raw):
        raise ImageError(
            f"{names[raw.index(True)]} is a raw photo and {names[raw.index(False)]} is not; expected two pictures, or "
            "one raw file that holds both views"
        )
    photos = decode_photos(files)
    return [develop_pixel_capture(photo) for photo in photos] if is_pixel_capture(own_names, photos) else photos


def read_target(path: str | os.PathLike[str], left: Photo) -> Photo:
    """Reads the target of a pair. One that a Pixel's capture app saved is developed as the views of a capture are.

    Args:
        path: Its file.
        left: The left view.

    Raises:
        ImageError: It cannot be read, or has another size or depth than the views.
    """
    target = read_photo(path)
    (height, width), (h, w) = left.pixels.shape[:2], target.pixels.shape[:2]
    if (2 * h, w) == (height, width) and holds_samples(target):
        target = develop_pixel_capture(target)
    check_like(path, target, "the views", left)
    return target


def claimed_size(name: str | os.PathLike[str], data: bytes) -> tuple[int, int]:
    """The width and height in px that the header of a file claims, as ``photo_size``; raw photos are known too."""
    return raw_size(name, data) if is_raw(data) else photo_size(name, data)


def match_views(
    first: Photo,
    second: Photo,
    names: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    *,
    axis: str = "horizontal",
) -> Views:
    """Checks that two photos belong together, and orders them as the upright picture has them.

    Args:
        first: The left view as the sensor has it, or the top one.
        second: The other view.
        names: Their names in errors and warnings.
        axis: As for ``read_views``.

    Raises:
        ImageError: They differ in size, depth or EXIF orientation.
    """
    if first.orientation != second.orientation:
        raise ImageError(
            f"{names[0]} has EXIF orientation {first.orientation} and {names[1]} has {second.orientation}; "
            "expected two views of one photo: give both files the same orientation tag"
        )
    check_like(names[1], second, names[0], first)
    second, linear, warnings = match_profiles(first, second, names)
    axis, mirrored = upright_disparity(axis, first.orientation)
    if mirrored:
        first, second = replace(first, pixels=second.pixels), replace(second, pixels=first.pixels)
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    return Views(first, second, axis, warnings, notes, linear)


def check_like(name: str | os.PathLike[str], photo: Photo, other: str | os.PathLike[str], expected: Photo) -> None:
    """Checks that a photo has the size and depth of another.

    Raises:
        ImageError: They differ.
    """
    (h, w), (expected_h, expected_w) = photo.pixels.shape[:2], expected.pixels.shape[:2]
    if (h, w) != (expected_h, expected_w):
        raise ImageError(
            f"{name} is {w} x {h} px; expected {expected_w} x {expected_h} px as {other}: crop or scale "
            "neither, or all alike"
        )
    if photo.pixels.dtype != expected.pixels.dtype:
        bits, expected_bits = (8 * p.pixels.dtype.itemsize for p in (photo, expected))
        raise ImageError(f"{name} has {bits} bits; expected {expected_bits} as {other}: export all with the same depth")


def check_blur_map_name(path: str | os.PathLike[str]) -> None:
    """Checks that ``encode_blur_map`` knows the suffix.

    Raises:
        ImageError: It is neither .npy nor that of a picture.
    """
    check_suffix(path, (*SUFFIXES, _NUMBERS))


def encode_blur_map(path: str | os.PathLike[str], blur_map: np.ndarray) -> bytes:
    """Encodes a blur map ``(h, w)`` by the suffix: numbers as .npy, otherwise a colour picture."""
    if Path(path).suffix.lower() == _NUMBERS:
        buffer = io.BytesIO()
        np.save(buffer, blur_map)
        return buffer.getvalue()
    return encode_photo(path, Photo(colour_blur_map(blur_map)))
