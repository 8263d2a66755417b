from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from ldp_runtime.errors import ImageError
from ldp_runtime.images import photo as image_io
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import read_photo, upright_disparity, write_files, write_photo, write_pixels

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PREFIX = b"Exif\0\0"
LOSSLESS = (".png", ".tif")
DTYPES = (np.uint8, np.uint16)


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def gradient(h: int, w: int) -> np.ndarray:
    """RGB that JPEG hardly changes and that tells all orientations apart."""
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([20 + 200 * y // h, 20 + 200 * x // w, np.full((h, w), 90)], axis=2).astype(np.uint8)


def exif_block(orientation: int = 1, byte_order: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x829A: 0.01, 0x927C: b"maker\0note", 0xA002: 40, 0xA003: 24}
    return exif.tobytes().removeprefix(PREFIX)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"metadata": None, **options})
    return buffer.getvalue()


def pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", body) + png_chunk(b"IDAT", b"")


def read(tmp_path: Path, data: bytes, name: str = "file") -> Photo:
    (tmp_path / name).write_bytes(data)
    return read_photo(tmp_path / name)


def error(tmp_path: Path, data: bytes, name: str = "file") -> str:
    with pytest.raises(ImageError) as caught:
        read(tmp_path, data, name)
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    return text


# --- round trips --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round_trip")


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    grey=st.booleans(),
    alpha=st.booleans(),
    suffix=st.sampled_from(LOSSLESS),
    icc=st.sampled_from([None, ICC]),
    byte_order=st.sampled_from([None, "<", ">"]),
    seed=st.integers(0, 2**32),
)
def test_lossless_round_trip(
    folder: Path,
    height: int,
    width: int,
    dtype: Any,
    grey: bool,
    alpha: bool,
    suffix: str,
    icc: bytes | None,
    byte_order: str | None,
    seed: int,
) -> None:
    values = noise(height, width, 4, dtype=dtype, seed=seed)
    pixels = np.repeat(values[..., :1], 3, axis=2) if grey else values[..., :3]
    photo = Photo(
        pixels,
        grey,
        values[..., 3] if alpha else None,
        icc,
        exif_block(byte_order=byte_order) if byte_order else None,
        (300.0, 300.0) if icc else None,
    )
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


def test_pillow_finds_the_metadata_of_a_16_bit_file(tmp_path: Path) -> None:
    photo = Photo(noise(5, 7, 3, dtype=np.uint16), icc_profile=ICC, exif=exif_block(), dpi=(240.0, 240.0))
    for suffix in LOSSLESS:
        write_photo(tmp_path / f"a{suffix}", photo)
        image = Image.open(tmp_path / f"a{suffix}")
        exif = image.getexif()
        assert image.info["icc_profile"] == ICC
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769)[0x927C] == b"maker\0note"
        assert float(exif.get_ifd(0x8769)[0x829A]) == 0.01
        assert image.info["dpi"] == pytest.approx((240, 240), rel=1e-4)


def test_large_tiff_has_several_strips(tmp_path: Path) -> None:
    pixels = noise(500, 800, 3, dtype=np.uint16)
    write_pixels(tmp_path / "a.tif", pixels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages.first.dataoffsets) > 1
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_round_trip(tmp_path: Path, grey: bool) -> None:
    pixels = gradient(40, 60)
    if grey:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    opaque = np.full((40, 60), 255, np.uint8)
    photo = Photo(pixels, grey, opaque, icc_profile=ICC, exif=exif_block(), dpi=(300.0, 300.0))
    write_photo(tmp_path / "a.JPG", photo)
    again = read_photo(tmp_path / "a.JPG")
    assert np.abs(again.pixels.astype(int) - pixels).max() <= 3
    assert (again.grey, again.icc_profile, again.exif, again.dpi) == (grey, ICC, photo.exif, (300, 300))
    assert again.alpha is None
    assert Image.open(tmp_path / "a.JPG").mode == ("L" if grey else "RGB")


def test_grey_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    pixels = np.array([[[10, 11, 12], [0, 0, 2]]], np.uint8)
    write_photo(tmp_path / "a.png", Photo(pixels, grey=True))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[11, 1]]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_pixels(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    pixels = noise(*shape, dtype=dtype)
    write_pixels(tmp_path / "a.png", pixels)
    stored = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored[..., ::-1] if len(shape) == 3 else stored, pixels)


# --- orientation --------------------------------------------------------------------------------------------


def stored_files(orientation: int) -> dict[str, tuple[bytes, np.ndarray]]:
    """Files of every kind with this orientation, and the pixels as stored."""
    eight = gradient(24, 40)
    sixteen = eight.astype(np.uint16) * 257
    exif = exif_block(orientation)
    tag = [(274, "H", 1, orientation, True)]
    bgr = np.ascontiguousarray(sixteen[..., ::-1])
    lzw = cv2.imencode(".tif", bgr, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    # OpenCV writes no orientation: turn a tag that says nothing here (planar configuration) into it.
    position = lzw.index(struct.pack("<HHI", 284, 3, 1))
    lzw = lzw[:position] + struct.pack("<HHII", 274, 3, 1, orientation) + lzw[position + 12 :]
    sixteen_png = image_io.encode_photo("a.png", Photo(sixteen, exif=exif))
    return {
        "jpeg": (
            pillow(Image.fromarray(eight), "JPEG", quality=98, subsampling=0, exif=PREFIX + exif),
            eight,
        ),
        "png": (pillow(Image.fromarray(eight), "PNG", exif=exif), eight),
        "png16": (sixteen_png, sixteen),
        "tiff": (tiff(eight, photometric="rgb", extratags=tag), eight),
        "tiff_lzw": (
            pillow(Image.fromarray(eight), "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}),
            eight,
        ),
        "tiff16": (tiff(sixteen, photometric="rgb", extratags=tag, compression="zlib"), sixteen),
        "tiff16_big_endian": (tiff(sixteen, photometric="rgb", extratags=tag, byteorder=">"), sixteen),
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_upright_disparity_follows_a_moving_point(tmp_path: Path, axis: str, orientation: int) -> None:
    positions = []
    for step in (0, 1):
        stored = np.zeros((5, 7, 3), np.uint8)
        stored[(2, 3 + step) if axis == "horizontal" else (2 + step, 3)] = 255
        photo = read(tmp_path, pillow(Image.fromarray(stored), "PNG", exif=exif_block(orientation)))
        positions.append(np.argwhere(photo.pixels[..., 0])[0])
    moved = tuple(positions[1] - positions[0])
    upright_axis, mirrored = upright_disparity(axis, orientation)
    sign = -1 if mirrored else 1
    assert moved == ((0, sign) if upright_axis == "horizontal" else (sign, 0))


# --- kinds of pictures --------------------------------------------------------------------------------------

G8, G16 = noise(6, 9), noise(6, 9, dtype=np.uint16)
RGB8, RGB16 = noise(6, 9, 3), noise(6, 9, 3, dtype=np.uint16)
RGBA8, RGBA16 = noise(6, 9, 4), noise(6, 9, 4, dtype=np.uint16)


def png16(array: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG with filter "None", written independently of the package."""
    height, width = array.shape[:2]
    rows = np.ascontiguousarray(array.astype(">u2")).view(np.uint8).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(raw)),
            png_chunk(b"IEND", b""),
        ]
    )


def palette_image() -> Image.Image:
    image = Image.fromarray(G8 % 4, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[G8 % 4]
BILEVEL = np.where(G8 > 127, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "colour", "alpha"),
    [
        pytest.param(pillow(Image.fromarray(G8), "PNG"), G8, None, id="png grey"),
        pytest.param(
            pillow(Image.fromarray(RGBA8[..., :2], "LA"), "PNG"),
            RGBA8[..., 0],
            RGBA8[..., 1],
            id="png grey alpha",
        ),
        pytest.param(pillow(Image.fromarray(RGBA8), "PNG"), RGBA8[..., :3], RGBA8[..., 3], id="png rgba"),
        pytest.param(pillow(Image.fromarray(BILEVEL).convert("1"), "PNG"), BILEVEL, None, id="png 1 bit"),
        pytest.param(pillow(palette_image(), "PNG"), PALETTE, None, id="png palette"),
        pytest.param(
            pillow(palette_image(), "PNG", transparency=2),
            PALETTE,
            np.where(G8 % 4 == 2, 0, 255).astype(np.uint8),
            id="png palette with a transparent colour",
        ),
        pytest.param(png16(G16, 0), G16, None, id="png16 grey"),
        pytest.param(png16(RGBA16[..., :2], 4), RGBA16[..., 0], RGBA16[..., 1], id="png16 grey alpha"),
        pytest.param(png16(RGB16, 2), RGB16, None, id="png16 rgb"),
        pytest.param(png16(RGBA16, 6), RGBA16[..., :3], RGBA16[..., 3], id="png16 rgba"),
        pytest.param(
            png16(RGB16, 2, png_chunk(b"tRNS", RGB16[0, 0].astype(">u2").tobytes())),
            RGB16,
            np.where((RGB16[0, 0] == RGB16).all(axis=2), 0, 65535).astype(np.uint16),
            id="png16 with a transparent colour",
        ),
        pytest.param(tiff(G8, photometric="minisblack"), G8, None, id="tiff grey"),
        pytest.param(tiff(G8, photometric="miniswhite"), 255 - G8, None, id="tiff white is zero"),
        pytest.param(pillow(Image.fromarray(BILEVEL).convert("1"), "TIFF"), BILEVEL, None, id="tiff 1 bit"),
        pytest.param(pillow(palette_image(), "TIFF"), PALETTE, None, id="tiff palette"),
        pytest.param(
            tiff(np.moveaxis(RGB8, 2, 0), photometric="rgb", planarconfig="separate"),
            RGB8,
            None,
            id="tiff planar",
        ),
        pytest.param(
            tiff(RGBA8, photometric="rgb", extrasamples=["unassalpha"]),
            RGBA8[..., :3],
            RGBA8[..., 3],
            id="tiff rgba",
        ),
        pytest.param(tiff(G16, photometric="minisblack"), G16, None, id="tiff16 grey"),
        pytest.param(tiff(G16, photometric="miniswhite"), 65535 - G16, None, id="tiff16 white is zero"),
        pytest.param(
            tiff(RGBA16[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]),
            RGBA16[..., 0],
            RGBA16[..., 1],
            id="tiff16 grey alpha",
        ),
        pytest.param(
            tiff(np.moveaxis(RGB16, 2, 0), photometric="rgb", planarconfig="separate"),
            RGB16,
            None,
            id="tiff16 planar",
        ),
        pytest.param(
            tiff(RGBA16, photometric="rgb", extrasamples=["unassalpha"], compression="zlib", predictor=True),
            RGBA16[..., :3],
            RGBA16[..., 3],
            id="tiff16 rgba deflate predictor",
        ),
        pytest.param(tiff(RGB16, photometric="rgb", tile=(16, 16)), RGB16, None, id="tiff16 tiled"),
        pytest.param(tiff(RGB16, photometric="rgb", bigtiff=True), RGB16, None, id="tiff16 big"),
        pytest.param(
            cv2.imencode(".tif", RGB16[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes(),
            RGB16,
            None,
            id="tiff16 lzw",
        ),
    ],
)
def test_reads(tmp_path: Path, data: bytes, colour: np.ndarray, alpha: np.ndarray | None) -> None:
    photo = read(tmp_path, data)
    assert photo.pixels.dtype == colour.dtype
    assert photo.grey == (colour.ndim == 2)
    np.testing.assert_array_equal(photo.pixels, np.repeat(colour[..., None], 3, 2) if photo.grey else colour)
    if alpha is None:
        assert photo.alpha is None
    else:
        np.testing.assert_array_equal(photo.alpha, alpha)


def test_reads_the_main_picture_of_a_multi_picture_jpeg(tmp_path: Path) -> None:
    main, second = Image.fromarray(gradient(24, 40)), Image.fromarray(gradient(24, 40)[::-1])
    data = pillow(main, "MPO", save_all=True, append_images=[second])
    photo = read(tmp_path, data)
    assert np.abs(photo.pixels.astype(int) - gradient(24, 40)).max() < 16


def test_a_thumbnail_page_is_no_second_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(RGB16, photometric="rgb", metadata=None)
        writer.write(RGB16[::2, ::2].copy(), photometric="rgb", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read(tmp_path, buffer.getvalue()).pixels, RGB16)


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    data = pillow(Image.fromarray(RGB8), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    photo = read(tmp_path, data)
    assert (photo.exif, photo.orientation) == (None, 1)
    np.testing.assert_array_equal(photo.pixels, RGB8)


# --- refusals -----------------------------------------------------------------------------------------------


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(noise(6, 9, 3, seed=seed)) for seed in range(2)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", ["is empty", "export it again"], id="empty"),
        pytest.param(b"hello, world", ["not a PNG, TIFF or JPEG", "convert"], id="text"),
        pytest.param(pillow(Image.fromarray(RGB8), "GIF"), ["not a PNG, TIFF or JPEG"], id="gif"),
        pytest.param(
            pillow(Image.fromarray(RGB8).convert("CMYK"), "JPEG"),
            ["CMYK", "convert it to RGB"],
            id="cmyk jpeg",
        ),
        pytest.param(
            pillow(Image.fromarray(RGB8).convert("CMYK"), "TIFF"),
            ["SEPARATED colour", "convert it to RGB"],
            id="cmyk tiff",
        ),
        pytest.param(
            tiff(RGB8.astype(np.float32), photometric="rgb"),
            ["32-bit IEEEFP", "16-bit TIFF or PNG"],
            id="float tiff",
        ),
        pytest.param(tiff(G16.astype(np.uint32)), ["32-bit UINT", "16-bit TIFF or PNG"], id="32-bit tiff"),
        pytest.param(tiff(G16.astype(np.int16)), ["16-bit INT", "16-bit TIFF or PNG"], id="signed tiff"),
        pytest.param(tiff(noise(6, 9, 6), photometric="rgb", planarconfig="contig"), ["6 channels"], id="six channels"),
        pytest.param(
            tiff(RGBA16, photometric="rgb", extrasamples=["assocalpha"]),
            ["premultiplied", "straight"],
            id="premultiplied",
        ),
        pytest.param(animation("PNG"), ["animation", "export one frame"], id="animated png"),
        pytest.param(animation("TIFF"), ["2 full-size pages", "export that page"], id="two pages"),
    ],
)
def test_refuses(tmp_path: Path, data: bytes, words: list[str]) -> None:
    text = error(tmp_path, data)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(png_header(2**15, 2**15), id="png"),
        pytest.param(png_header(1, 10**9), id="png of one column"),
        pytest.param(
            b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65535, 65535, 1) + b"\x01\x11\x00\xff\xd9",
            id="jpeg",
        ),
        pytest.param(
            tiff(G8, photometric="minisblack")
            .replace(struct.pack("<HHII", 256, 4, 1, 9), struct.pack("<HHII", 256, 4, 1, 2**20))
            .replace(struct.pack("<HHII", 257, 4, 1, 6), struct.pack("<HHII", 257, 4, 1, 2**20)),
            id="tiff",
        ),
    ],
)
def test_refuses_a_decompression_bomb_before_decoding(
    tmp_path: Path, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    for decoder in ("decode_pillow", "decode_cv2", "_decode_tiff"):
        monkeypatch.setattr(image_io, decoder, decode)
    text = error(tmp_path, header)
    assert "claims" in text
    assert f"at most {image_io.MAX_PIXELS}" in text


def test_the_largest_dual_pixel_photos_are_within_the_limit() -> None:
    assert image_io.MAX_PIXELS > 8736 * 11648
    assert image_io.MAX_FILE_BYTES > 8736 * 11648 * 6


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_header(16000, 16000) + png_chunk(b"IEND", b""), id="png"),
        pytest.param(
            b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 16000, 16000, 1) + b"\x01\x11\x00\xff\xd9", id="jpeg"
        ),
        pytest.param(
            tiff(G8, photometric="minisblack", compression="zlib", rowsperstrip=16000)
            .replace(struct.pack("<HHII", 256, 4, 1, 9), struct.pack("<HHII", 256, 4, 1, 16000))
            .replace(struct.pack("<HHII", 257, 4, 1, 6), struct.pack("<HHII", 257, 4, 1, 16000))
            .replace(struct.pack("<HHII", 278, 4, 1, 6), struct.pack("<HHII", 278, 4, 1, 16000)),
            id="tiff",
        ),
    ],
)
def test_a_short_file_that_claims_much_is_refused_before_decoding(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    for decoder in ("decode_pillow", "decode_cv2", "_decode_tiff"):
        monkeypatch.setattr(image_io, decoder, decode)
    assert "cannot hold the 16000 x 16000 pixels that it claims" in error(tmp_path, data)


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(b"\x89PNG")
    os.truncate(tmp_path / "huge.png", image_io.MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match=f"expected at most {image_io.MAX_FILE_BYTES}"):
        read_photo(tmp_path / "huge.png")


BOMB = zlib.compress(bytes(2**26), 9)
"""64 MiB of zeros in 64 KiB."""


def test_a_strip_that_inflates_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(RGB16, photometric="rgb", compression="zlib")
    position = data.index(struct.pack("<HHI", 279, 4, 1))
    bomb = data[: position + 8] + struct.pack("<I", len(BOMB)) + data[position + 12 :]
    position = bomb.index(struct.pack("<HHI", 273, 4, 1))
    bomb = bomb[: position + 8] + struct.pack("<I", len(bomb)) + bomb[position + 12 :] + BOMB
    inflated: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self._stream = real()

        def decompress(self, packed: bytes, limit: int) -> bytes:
            out = self._stream.decompress(packed, limit)
            inflated.append(len(out))
            return out

        @property
        def eof(self) -> bool:
            return self._stream.eof

    monkeypatch.setattr(image_io.zlib, "decompressobj", Watched)
    assert f"inflates to more than its {RGB16.nbytes} bytes" in error(tmp_path, bomb)
    assert inflated == [RGB16.nbytes + 1]


def test_a_deflated_tiff_is_what_tifffile_reads(tmp_path: Path) -> None:
    large = noise(70, 50, 3, dtype=np.uint16)
    for options in ({"rowsperstrip": 7}, {"tile": (32, 16)}, {"rowsperstrip": 2**31}, {"predictor": True}):
        for order in "<>":
            data = tiff(large, photometric="rgb", compression="zlib", byteorder=order, **options)
            np.testing.assert_array_equal(read(tmp_path, data).pixels, large)
    planes = tiff(
        np.moveaxis(large, 2, 0), photometric="rgb", planarconfig="separate", compression="zlib", tile=(16, 16)
    )
    np.testing.assert_array_equal(read(tmp_path, planes).pixels, large)


def test_a_png_with_a_second_or_a_late_header_is_refused(tmp_path: Path) -> None:
    whole = WHOLE["png16"]
    ihdr, rest = whole[8:33], whole[33:]
    text = png_chunk(b"tEXt", b"a" * 4 + b"\x10")
    assert "one header, first of all" in error(tmp_path, whole[:8] + ihdr + ihdr + rest)
    assert "one header, first of all" in error(tmp_path, whole[:8] + text + ihdr + rest)
    read(tmp_path, whole[:8] + ihdr + text + rest)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"a\0\0" + BOMB),
        png_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
        png_chunk(b"iCCP", b"a\0\0" + BOMB),
    ],
)
def test_a_bomb_in_a_text_or_profile_is_refused(tmp_path: Path, chunk: bytes) -> None:
    whole = WHOLE["png"]
    assert "damaged or truncated" in error(tmp_path, whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize("length", [1, 2, 150])
def test_a_circle_of_directories_ends(tmp_path: Path, length: int) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for _ in range(length):
            writer.write(RGB16, photometric="rgb", metadata=None)
    data = bytearray(buffer.getvalue())
    (at,) = first = struct.unpack_from("<I", data, 4)
    for _ in range(length - 1):
        (count,) = struct.unpack_from("<H", data, at)
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, *first)
    assert "pages" in error(tmp_path, bytes(data))


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    data = pillow(Image.fromarray(gradient(24, 40)), "JPEG", progressive=True)
    read(tmp_path, data)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * image_io.MAX_JPEG_SCANS + b"\xff\xd9"
    assert f"more than the {image_io.MAX_JPEG_SCANS} that are read" in error(tmp_path, bomb)


def test_more_pixels_than_pillows_own_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "TIFF", "JPEG"):
        assert read(tmp_path, pillow(Image.fromarray(RGB8), kind)).pixels.shape == (6, 9, 3)


WHOLE = {
    "jpeg": pillow(Image.fromarray(noise(40, 40, 3)), "JPEG"),
    "png": image_io.encode_photo("a.png", Photo(noise(20, 20, 3))),
    "png16": image_io.encode_photo("a.png", Photo(noise(20, 20, 3, dtype=np.uint16))),
    "tiff": tiff(noise(20, 20, 3), photometric="rgb"),
    "tiff_lzw": pillow(Image.fromarray(noise(20, 20, 3)), "TIFF", compression="tiff_lzw"),
    "tiff16": tiff(noise(20, 20, 3, dtype=np.uint16), photometric="rgb"),
    "tiff16_ours": image_io.encode_photo("a.tif", Photo(noise(20, 20, 3, dtype=np.uint16))),
    "tiff16_lzw": cv2.imencode(".tif", noise(20, 20, 3, dtype=np.uint16), [cv2.IMWRITE_TIFF_COMPRESSION, 5])[
        1
    ].tobytes(),
}


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("kind", list(WHOLE))
def test_refuses_a_truncated_file(tmp_path: Path, kind: str, kept: float) -> None:
    data = WHOLE[kind]
    read(tmp_path, data)
    text = error(tmp_path, data[: max(20, int(len(data) * kept))])
    assert "damaged or truncated" in text
    assert "copy or export it again" in text


@pytest.mark.parametrize("kind", ["png", "png16"])
def test_refuses_a_png_with_a_flipped_bit(tmp_path: Path, kind: str) -> None:
    data = bytearray(WHOLE[kind])
    data[len(data) // 2] ^= 1
    assert "checksum" in error(tmp_path, bytes(data))


def test_refuses_a_tiff_with_a_missing_strip_or_size(tmp_path: Path) -> None:
    data = WHOLE["tiff16_ours"]
    position = data.index(struct.pack("<HHI", 279, 4, 1))
    (size,) = struct.unpack_from("<I", data, position + 8)
    assert size > 0
    missing = data[: position + 8] + struct.pack("<I", 0) + data[position + 12 :]
    assert "a part of the picture is missing" in error(tmp_path, missing)
    position = data.index(struct.pack("<HHII", 256, 4, 1, 20))
    empty = data[: position + 8] + struct.pack("<I", 0) + data[position + 12 :]
    assert "claims 0 x 20 pixels" in error(tmp_path, empty)


TAGGED = Photo(noise(9, 9, 3), False, None, ICC, exif_block(6), (300.0, 300.0))
WITH_METADATA = {f"tagged{suffix}": image_io.encode_photo(f"a{suffix}", TAGGED) for suffix in (".png", ".tif", ".jpg")}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([*WHOLE, *WITH_METADATA]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    early=st.booleans(),
)
def test_a_damaged_file_gives_a_photo_or_an_image_error(
    folder: Path, kind: str, changes: list[tuple[int, int]], early: bool
) -> None:
    data = bytearray((WHOLE | WITH_METADATA)[kind])
    for position, value in changes:
        data[position % (min(200, len(data)) if early else len(data))] = value
    (folder / "damaged").write_bytes(data)
    try:
        photo = read_photo(folder / "damaged")
    except ImageError as caught:
        assert "\n" not in str(caught)
    else:
        assert photo.pixels.ndim == 3
        assert photo.pixels.size > 0
        for suffix in LOSSLESS:
            write_photo(folder / f"again{suffix}", photo)


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
    with pytest.raises(ImageError, match=r"a\.png cannot be read: permission denied; check the rights"):
        read_photo(tmp_path / "a.png")


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "photo", "words"),
    [
        ("a.png", Photo(RGB8.astype(np.float32)), ["uint8 or uint16", "float32"]),
        ("a.png", Photo(RGBA8), ["(h, w, 3)", "(6, 9, 4)"]),
        ("a.gif", Photo(RGB8), ["'.gif'", ".png, .tif, .tiff, .jpg, .jpeg"]),
        ("a", Photo(RGB8), ["no suffix", ".png"]),
        ("a.jpg", Photo(RGB16), ["JPEG holds 8 bits", ".png or .tif"]),
        ("a.jpg", Photo(RGB8, alpha=RGB8[..., 0]), ["JPEG holds no alpha", ".png or .tif"]),
        ("a.jpg", Photo(np.zeros((1, 65536, 3), np.uint8)), ["65535 px a side", ".png or .tif"]),
        ("a.jpg", Photo(RGB8, exif=bytes(70000)), ["64 KiB of EXIF", ".png or .tif"]),
        ("missing/a.png", Photo(RGB8), ["cannot be written", "No such file"]),
    ],
)
def test_refuses_to_write(tmp_path: Path, name: str, photo: Photo, words: list[str]) -> None:
    with pytest.raises(ImageError) as caught:
        write_photo(tmp_path / name, photo)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").write_bytes(b"old")

    def disk_full(handle: int) -> None:
        if os.fstat(handle).st_size > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(ImageError, match="second cannot be written: No space left on device"):
        write_files({tmp_path / "first": b"new", tmp_path / "second": b"longer"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first": b"old"}


def test_write_follows_a_link_and_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    replaced = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        replaced.append((source.parent, target))
        assert (tmp_path / "real.png").read_bytes() == b"old"
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_pixels(tmp_path / "link.png", RGB8)
    assert replaced == [(tmp_path, tmp_path / "real.png")]
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read_photo(tmp_path / "real.png").pixels, RGB8)


def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    write_pixels(tmp_path / "a.png", RGB8)
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_io.check_writable(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImageError, match="is a folder; give a file name"):
        image_io.check_writable(tmp_path)
    with pytest.raises(ImageError, match="missing does not exist; make it first"):
        image_io.check_writable(tmp_path / "missing" / "a.png")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ImageError, match="Permission denied; choose another folder"):
        image_io.check_writable(tmp_path / "a.png")
