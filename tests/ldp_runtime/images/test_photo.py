import os
import struct
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ldp_runtime import threads
from ldp_runtime.errors import ImageError, WriteError
from ldp_runtime.images import jpeg, png
from ldp_runtime.images import photo as photo_module
from ldp_runtime.images import tiff as tiff_module
from ldp_runtime.images.decode import MAX_PIXELS, Format, Photo
from ldp_runtime.images.photo import MAX_FILE_BYTES, decode_photos, encode_photo, read_photo, write_photo, write_pixels
from tests.ldp_runtime.images.pictures import (
    G8,
    G16,
    ICC,
    PREFIX,
    RGB8,
    RGB16,
    RGBA8,
    RGBA16,
    exif_block,
    gradient,
    noise,
    pillow,
    png16,
    png_chunk,
    read,
    refusal,
    tiff,
)

LOSSLESS = (".png", ".tif")
DTYPES = (np.uint8, np.uint16)


def lzw16(array: np.ndarray) -> bytes:
    return cv2.imencode(".tif", array[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round_trip")


@settings(max_examples=60)
@given(st.data())
def test_lossless_round_trip(folder: Path, data: st.DataObject) -> None:
    height, width, seed = (data.draw(st.integers(*ends)) for ends in ((1, 40), (1, 40), (0, 2**32)))
    grey, alpha, tagged = (data.draw(st.booleans()) for _ in range(3))
    dtype, suffix = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(LOSSLESS))
    byte_order = data.draw(st.sampled_from([None, "<", ">"]))
    values = noise(height, width, 4, dtype=dtype, seed=seed)
    pixels = np.repeat(values[..., :1], 3, axis=2) if grey else values[..., :3]
    icc, dpi = (ICC, (300.0, 300.0)) if tagged else (None, None)
    exif = exif_block(order=byte_order) if byte_order else None
    photo = Photo(pixels, grey, values[..., 3] if alpha else None, icc, exif, dpi)
    path = folder / f"photo{suffix}"
    write_photo(path, photo)
    again = read_photo(path)

    assert again.pixels.dtype == dtype
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert again.grey == grey
    if photo.alpha is None:
        assert again.alpha is None
    else:
        np.testing.assert_array_equal(again.alpha, photo.alpha)
    assert again.icc_profile == icc
    assert again.exif == photo.exif
    assert again.dpi == (pytest.approx((300, 300), rel=1e-4) if icc else None)

    # Decoders that are none of ours agree.
    stored = values[..., ([0] if grey else [0, 1, 2]) + ([3] if alpha else [])]
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(path).reshape(stored.shape), stored)
    elif dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(stored.shape), stored)
    else:
        opencv = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
        np.testing.assert_array_equal(opencv, pixels)


def test_the_files_of_a_pair_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2, timeout=60)  # passes only if both are decoded at a time
    decode = photo_module._format_of_content

    def meet(path: Path, data: bytes) -> Format:
        barrier.wait()
        return decode(path, data)

    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(photo_module, "_format_of_content", meet)
    files = [("a.png", pillow(RGB8, "PNG")), ("b.png", png16(RGB16, 2))]
    first, second = decode_photos(files)
    np.testing.assert_array_equal(first.pixels, RGB8)
    np.testing.assert_array_equal(second.pixels, RGB16)
    with pytest.raises(ImageError, match=r"a\.png is damaged"):  # the first of both errors
        decode_photos([(name, data[:-20]) for name, data in files])


def test_pillow_finds_the_metadata_of_a_16_bit_file(tmp_path: Path) -> None:
    photo = Photo(noise(5, 7, 3, dtype=np.uint16), icc_profile=ICC, exif=exif_block(), dpi=(240.0, 240.0))
    for suffix in LOSSLESS:
        write_photo(tmp_path / f"a{suffix}", photo)
        image = Image.open(tmp_path / f"a{suffix}")
        exif = image.getexif()
        assert image.info["icc_profile"] == ICC
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769)[0x927C] == b"maker\0note" * 20
        assert float(exif.get_ifd(0x8769)[0x829A]) == 0.01
        assert image.info["dpi"] == pytest.approx((240, 240), rel=1e-4)


def test_grey_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    pixels = np.array([[[10, 11, 12], [0, 0, 2]]], np.uint8)
    write_photo(tmp_path / "a.png", Photo(pixels, grey=True))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[11, 1]]
    pixels = np.concatenate([noise(50, 40, 3, dtype=np.uint16), np.full((1, 40, 3), 65535, np.uint16)])
    write_photo(tmp_path / "b.png", Photo(pixels, grey=True))
    stored = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, np.rint(pixels.mean(axis=2, dtype=np.float64)))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_pixels(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    pixels = noise(*shape, dtype=dtype)
    write_pixels(tmp_path / "a.png", pixels)
    stored = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored[..., ::-1] if len(shape) == 3 else stored, pixels)


def stored_files(orientation: int) -> dict[str, tuple[bytes, np.ndarray]]:
    """Files of every kind with this orientation, and the pixels as stored."""
    eight = gradient(24, 40)
    sixteen = eight.astype(np.uint16) * 257
    exif = exif_block(orientation)
    tag = [(274, "H", 1, orientation, True)]
    lzw = lzw16(sixteen)
    # OpenCV writes no orientation: turn a tag that says nothing here (planar configuration) into it.
    position = lzw.index(struct.pack("<HHI", 284, 3, 1))
    lzw = lzw[:position] + struct.pack("<HHII", 274, 3, 1, orientation) + lzw[position + 12 :]
    sixteen_png = encode_photo("a.png", Photo(sixteen, exif=exif))
    return {
        "jpeg": (pillow(eight, "JPEG", quality=98, subsampling=0, exif=PREFIX + exif), eight),
        "png": (pillow(eight, "PNG", exif=exif), eight),
        "png16": (sixteen_png, sixteen),
        "tiff": (tiff(eight, extratags=tag), eight),
        "tiff_lzw": (pillow(eight, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}), eight),
        "tiff16": (tiff(sixteen, extratags=tag, compression="zlib"), sixteen),
        "tiff16_big_endian": (tiff(sixteen, extratags=tag, byteorder=">"), sixteen),
        "tiff16_lzw": (lzw, sixteen),
    }


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", list(stored_files(1)))
def test_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int) -> None:
    data, stored = stored_files(orientation)[kind]
    oracle = Image.fromarray((stored >> (8 if stored.dtype == np.uint16 else 0)).astype(np.uint8))
    oracle.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(oracle))

    photo = read(tmp_path, data)
    assert photo.orientation == orientation
    shown = (photo.pixels >> (8 if stored.dtype == np.uint16 else 0)).astype(int)
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).max() <= (3 if kind == "jpeg" else 0)

    suffix = {"j": ".jpg", "p": ".png", "t": ".tif"}[kind[0]]
    write_photo(tmp_path / f"again{suffix}", photo)
    again = read_photo(tmp_path / f"again{suffix}")
    assert again.orientation == 1
    assert again.pixels.shape == photo.pixels.shape
    assert np.abs(again.pixels.astype(int) - photo.pixels).max() <= (6 if kind == "jpeg" else 0)


def palette_image() -> Image.Image:
    image = Image.fromarray(G8 % 4, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[G8 % 4]
BILEVEL = np.where(G8 > 127, 255, 0).astype(np.uint8)
STRAIGHT = {"extrasamples": ["unassalpha"]}
GREY_ALPHA = {"photometric": "minisblack", "planarconfig": "contig", **STRAIGHT}
KINDS: dict[str, tuple[bytes, np.ndarray, np.ndarray | None]] = {
    "png grey": (pillow(G8, "PNG"), G8, None),
    "png grey alpha": (pillow(Image.fromarray(RGBA8[..., :2], "LA"), "PNG"), RGBA8[..., 0], RGBA8[..., 1]),
    "png rgba": (pillow(RGBA8, "PNG"), RGBA8[..., :3], RGBA8[..., 3]),
    "png 1 bit": (pillow(BILEVEL, "PNG", "1"), BILEVEL, None),
    "png palette": (pillow(palette_image(), "PNG"), PALETTE, None),
    "png palette with a transparent colour": (
        pillow(palette_image(), "PNG", transparency=2),
        PALETTE,
        np.where(G8 % 4 == 2, 0, 255).astype(np.uint8),
    ),
    "png16 grey": (png16(G16, 0), G16, None),
    "png16 grey alpha": (png16(RGBA16[..., :2], 4), RGBA16[..., 0], RGBA16[..., 1]),
    "png16 rgb": (png16(RGB16, 2), RGB16, None),
    "png16 rgba": (png16(RGBA16, 6), RGBA16[..., :3], RGBA16[..., 3]),
    "png16 with a transparent colour": (
        png16(RGB16, 2, png_chunk(b"tRNS", RGB16[0, 0].astype(">u2").tobytes())),
        RGB16,
        np.where((RGB16[0, 0] == RGB16).all(axis=2), 0, 65535).astype(np.uint16),
    ),
    "tiff grey": (tiff(G8, photometric="minisblack"), G8, None),
    "tiff white is zero": (tiff(G8, photometric="miniswhite"), 255 - G8, None),
    "tiff 1 bit": (pillow(BILEVEL, "TIFF", "1"), BILEVEL, None),
    "tiff palette": (pillow(palette_image(), "TIFF"), PALETTE, None),
    "tiff planar": (tiff(np.moveaxis(RGB8, 2, 0), planarconfig="separate"), RGB8, None),
    "tiff rgba": (tiff(RGBA8, **STRAIGHT), RGBA8[..., :3], RGBA8[..., 3]),
    "tiff16 grey": (tiff(G16, photometric="minisblack"), G16, None),
    "tiff16 white is zero": (tiff(G16, photometric="miniswhite"), 65535 - G16, None),
    "tiff16 grey alpha": (tiff(RGBA16[..., :2], **GREY_ALPHA), RGBA16[..., 0], RGBA16[..., 1]),
    "tiff16 planar": (tiff(np.moveaxis(RGB16, 2, 0), planarconfig="separate"), RGB16, None),
    "tiff16 rgba deflate predictor": (
        tiff(RGBA16, compression="zlib", predictor=True, **STRAIGHT),
        RGBA16[..., :3],
        RGBA16[..., 3],
    ),
    "tiff16 tiled": (tiff(RGB16, tile=(16, 16)), RGB16, None),
    "tiff16 big": (tiff(RGB16, bigtiff=True), RGB16, None),
    "tiff16 lzw": (lzw16(RGB16), RGB16, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reads(tmp_path: Path, kind: str) -> None:
    data, colour, alpha = KINDS[kind]
    photo = read(tmp_path, data)
    assert photo.pixels.dtype == colour.dtype
    assert photo.grey == (colour.ndim == 2)
    np.testing.assert_array_equal(photo.pixels, np.repeat(colour[..., None], 3, 2) if photo.grey else colour)
    if alpha is None:
        assert photo.alpha is None
    else:
        np.testing.assert_array_equal(photo.alpha, alpha)


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    data = pillow(RGB8, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    photo = read(tmp_path, data)
    assert (photo.exif, photo.orientation) == (None, 1)
    np.testing.assert_array_equal(photo.pixels, RGB8)


def animation(kind: str) -> bytes:
    return pillow(RGB8, kind, save_all=True, append_images=[Image.fromarray(noise(6, 9, 3, seed=1))])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["is empty", "export it again"]),
        (b"hello, world", ["not a PNG, TIFF, JPEG, PGM or PPM", "convert"]),
        (pillow(RGB8, "GIF"), ["not a PNG, TIFF, JPEG, PGM or PPM"]),
        (pillow(RGB8, "JPEG", "CMYK"), ["CMYK", "convert it to RGB"]),
        (pillow(RGB8, "TIFF", "CMYK"), ["SEPARATED colour", "convert it to RGB"]),
        (tiff(RGB8.astype(np.float16)), ["16-bit IEEEFP", "16-bit TIFF or PNG"]),
        (tiff(np.full((2, 3, 3), np.nan, np.float32)), ["NaN or infinite"]),
        (tiff(G16.astype(np.uint32), photometric="minisblack"), ["32-bit UINT", "16-bit TIFF or PNG"]),
        (tiff(G16.astype(np.int16), photometric="minisblack"), ["16-bit INT", "16-bit TIFF or PNG"]),
        (tiff(noise(6, 9, 6), planarconfig="contig"), ["6 channels"]),
        (tiff(RGBA16, extrasamples=["assocalpha"]), ["premultiplied", "straight"]),
        (animation("PNG"), ["animation", "export one frame"]),
        (animation("TIFF"), ["2 full-size pages", "export that page"]),
    ],
)
def test_refuses(tmp_path: Path, data: bytes, words: list[str]) -> None:
    text = refusal(tmp_path, data)
    assert [word for word in words if word not in text] == []


def header_of(kind: str, width: int, height: int, **options: Any) -> bytes:
    """A file whose header claims a size and whose pixels are hardly there."""
    if kind == "png":
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    if kind == "jpeg":
        return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00\xff\xd9"
    data = tiff(G8, photometric="minisblack", **options)
    for tag, old, new in ((256, 9, width), (257, 6, height), (278, 6, height)):
        data = data.replace(struct.pack("<HHII", tag, 4, 1, old), struct.pack("<HHII", tag, 4, 1, new))
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header_of("png", 2**15, 2**15), f"at most {MAX_PIXELS}"),
        (header_of("png", 1, 10**9), f"at most {MAX_PIXELS}"),
        (header_of("jpeg", 65535, 65535), f"at most {MAX_PIXELS}"),
        (header_of("tiff", 2**20, 2**20), f"at most {MAX_PIXELS}"),
        (header_of("png", 16000, 16000), "cannot hold the 16000 x 16000 pixels"),
        (header_of("jpeg", 16000, 16000), "cannot hold the 16000 x 16000 pixels"),
        (header_of("tiff", 16000, 16000, compression="zlib"), "cannot hold the 16000 x 16000 pixels"),
    ],
)
def test_refuses_a_file_that_claims_too_much_before_decoding(
    tmp_path: Path, data: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    decoders = ((png, "decode_pillow"), (png, "decode_cv2"), (jpeg, "decode_pillow"), (tiff_module, "_decode_page"))
    for module, decoder in decoders:
        monkeypatch.setattr(module, decoder, decode)
    text = refusal(tmp_path, data)
    assert "claims" in text
    assert words in text


def test_the_largest_dual_pixel_photos_are_within_the_limit() -> None:
    assert MAX_PIXELS > 8736 * 11648
    assert MAX_FILE_BYTES > 8736 * 11648 * 6


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(b"\x89PNG")
    os.truncate(tmp_path / "huge.png", MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match=f"expected at most {MAX_FILE_BYTES}"):
        read_photo(tmp_path / "huge.png")


def test_more_pixels_than_pillows_own_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "TIFF", "JPEG"):
        assert read(tmp_path, pillow(RGB8, kind)).pixels.shape == (6, 9, 3)


EIGHT, SIXTEEN = noise(20, 20, 3), noise(20, 20, 3, dtype=np.uint16)
WHOLE = {
    "jpeg": pillow(noise(40, 40, 3), "JPEG"),
    "png": encode_photo("a.png", Photo(EIGHT)),
    "png16": encode_photo("a.png", Photo(SIXTEEN)),
    "tiff": tiff(EIGHT),
    "tiff_lzw": pillow(EIGHT, "TIFF", compression="tiff_lzw"),
    "tiff16": tiff(SIXTEEN),
    "tiff16_ours": encode_photo("a.tif", Photo(SIXTEEN)),
    "tiff16_lzw": lzw16(SIXTEEN),
}


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("kind", WHOLE)
def test_refuses_a_truncated_file(tmp_path: Path, kind: str, kept: float) -> None:
    data = WHOLE[kind]
    read(tmp_path, data)
    text = refusal(tmp_path, data[: max(20, int(len(data) * kept))])
    assert "damaged or truncated" in text
    assert "copy or export it again" in text


def test_refuses_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder; give an image file"):
        read_photo(tmp_path)
    with pytest.raises(ImageError, match="does not exist; check the name"):
        read_photo(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        read_photo(tmp_path / "pipe")


def test_refuses_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pixels(tmp_path / "a.png", RGB8)

    def denied(_: Path) -> bytes:  # a chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ImageError, match=r"a\.png cannot be read: Permission denied; check its name and rights"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "photo", "words"),
    [
        ("a.png", Photo(RGB8.astype(np.float32)), ["uint8 or uint16", "float32"]),
        ("a.png", Photo(RGBA8), ["(h, w, 3)", "(6, 9, 4)"]),
        ("a.gif", Photo(RGB8), ["'.gif'", ".png, .tif, .tiff, .jpg, .jpeg"]),
        ("a", Photo(RGB8), ["no suffix", ".png"]),
        ("a.jpg", Photo(RGB16), ["JPEG holds 8 bits", ".png or .tif"]),
        ("a.jpg", Photo(RGB8, alpha=RGB8[..., 0]), ["JPEG holds no alpha", ".png or .tif"]),
        ("a.jpg", Photo(np.zeros((1, 65536, 3), np.uint8)), ["65535 px per side", ".png or .tif"]),
        ("a.jpg", Photo(RGB8, exif=bytes(70000)), ["64 KiB of EXIF", ".png or .tif"]),
    ],
)
def test_refuses_to_write(tmp_path: Path, name: str, photo: Photo, words: list[str]) -> None:
    with pytest.raises(ImageError) as caught:
        write_photo(tmp_path / name, photo)
    assert [word for word in words if word not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"a\.png cannot be written: No such file"):
        write_photo(tmp_path / "missing" / "a.png", Photo(RGB8))
