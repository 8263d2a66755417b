"""Small photos of every kind that is read, and changes that know what their formats are made of."""

import functools
import re
import struct
import zlib
from collections.abc import Callable
from random import Random

import cv2
import numpy as np
from PIL import PngImagePlugin

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo
from tests.fuzz.mutations import change_bytes, number, rearrange
from tests.ldp_runtime.images.pictures import ICC, exif_block, noise, pillow, png_chunk, tiff

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA_CHUNKS = (b"eXIf", b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_CHUNKS = (*METADATA_CHUNKS, b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM")


@functools.cache
def originals() -> dict[str, dict[str, bytes]]:
    """Format -> name -> a valid file."""
    grey, rgb, rgba = noise(9, 13), noise(12, 20, 3), noise(12, 20, 4)
    rgb16, rgba16 = noise(12, 20, 3, dtype=np.uint16), noise(12, 20, 4, dtype=np.uint16)
    tagged = {"icc_profile": ICC, "exif": exif_block(orientation=6), "dpi": (300.0, 300.0)}
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a" * 50)
    texts.add_text("Comment", "b" * 500, zip=True)
    texts.add_itxt("Author", "c" * 50, "de", "Autor", zip=True)
    return {
        "png": {
            "grey": pillow(grey, "PNG"),
            "rgb": pillow(rgb, "PNG", pnginfo=texts, icc_profile=ICC, dpi=(72, 72)),
            "rgba": pillow(rgba, "PNG"),
            "bilevel": pillow(grey, "PNG", "1"),
            "palette": pillow(rgb, "PNG", "P", transparency=2),
            "tagged": encode_photo("a.png", Photo(rgb, **tagged)),
            "rgb16": encode_photo("a.png", Photo(rgb16, **tagged)),
            "rgba16": encode_photo("a.png", Photo(rgba16[..., :3], alpha=rgba16[..., 3])),
        },
        "tiff": {
            "plain": tiff(rgb),
            "grey": tiff(grey, photometric="minisblack"),
            "deflate": tiff(rgb16, compression="zlib", predictor=True, rowsperstrip=5),
            "packbits": pillow(rgb, "TIFF", compression="packbits"),
            "lzw": pillow(rgb, "TIFF", compression="tiff_lzw"),
            "jpeg": pillow(rgb, "TIFF", compression="jpeg"),
            "bilevel": pillow(grey, "TIFF", "1", compression="group4"),
            "palette": pillow(rgb, "TIFF", "P"),
            "lzw16": cv2.imencode(".tif", rgb16, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes(),
            "tiles": tiff(rgb16, tile=(16, 16), compression="zlib"),
            "planes": tiff(np.moveaxis(rgb16, 2, 0), planarconfig="separate", byteorder=">"),
            "big": tiff(rgb16, bigtiff=True, compression="zlib"),
            "tagged": encode_photo("a.tif", Photo(rgb16, **tagged)),
            "float": tiff(rgb16.astype(np.float32), compression="zlib", extratags=[(341, 11, 3, (65535.0,) * 3, True)]),
            "floats of opencv": cv2.imencode(".tif", rgb.astype(np.float32) / 255)[1].tobytes(),
            "alpha": encode_photo("a.tif", Photo(rgba[..., :3], alpha=rgba[..., 3], exif=exif_block(order=">"))),
        },
        "jpeg": {
            "grey": pillow(grey, "JPEG"),
            "baseline": pillow(rgb, "JPEG", quality=90),
            "subsampled": pillow(rgb, "JPEG", subsampling=2, restart_marker_blocks=1),
            "progressive": pillow(rgb, "JPEG", progressive=True, comment=b"hello"),
            "tagged": encode_photo("a.jpg", Photo(rgb, **tagged)),
            "cmyk": pillow(rgb, "JPEG", "CMYK"),
        },
        "pnm": {
            "grey": encode_photo("a.pgm", Photo(np.repeat(grey[..., None], 3, axis=2), grey=True)),
            "rgb": encode_photo("a.ppm", Photo(rgb)),
            "rgb16": encode_photo("a.ppm", Photo(rgb16)),
            "text": b"P2 # levels\n13 9\n255\n" + " ".join(map(str, grey.reshape(-1))).encode(),
            "rgb text": b"P3 20 12 65535\n" + "\n".join(map(str, rgb16.reshape(-1))).encode(),
        },
    }


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file: type and body; what follows the last whole one is left out."""
    chunks, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks, with true lengths and checksums."""
    return SIGNATURE + b"".join(png_chunk(kind, body) for kind, body in chunks)


@functools.cache
def bomb(megabytes: int) -> bytes:
    """Zeros, compressed a thousandfold."""
    return zlib.compress(bytes(megabytes << 20), 9)


def mutate_png(random: Random, data: bytes) -> bytes:
    """A change that keeps lengths and checksums true, so that it reaches what reads the chunks."""
    chunks = split_png(data)
    if not chunks:
        return change_bytes(random, data)
    at = random.randrange(len(chunks))
    kind, body = chunks[at]
    match random.randrange(9):
        case 0:
            chunks = rearrange(random, chunks)
        case 1 | 2:
            chunks[at] = kind, change_bytes(random, body)
        case 3:
            chunks[at] = random.choice(_CHUNKS), body
        case 4:
            chunks.insert(random.randrange(len(chunks) + 1), _new_chunk(random))
        case 5 | 6:
            chunks[0] = chunks[0][0], _changed_header(random, chunks[0][1])
        case 7:
            chunks = [(k, _changed_pixels(random, b) if k == b"IDAT" else b) for k, b in chunks]
        case _:
            return mutate_png_metadata(random, data)
    return join_png(chunks)


def mutate_png_metadata(random: Random, data: bytes) -> bytes:
    """A change of the metadata: the picture stays the same or is refused."""
    chunks = split_png(data)
    which = [i for i, (kind, _) in enumerate(chunks) if kind in METADATA_CHUNKS]
    if which and random.random() < 0.7:
        at = random.choice(which)
        kind, body = chunks[at]
        chunks[at] = kind, mutate_exif(random, body) if kind == b"eXIf" else change_bytes(random, body)
    elif chunks:
        kind = random.choice(METADATA_CHUNKS)
        chunks.insert(random.randint(1, max(1, len(chunks) - 1)), (kind, _metadata(random, kind)))
    return join_png(chunks)


def _new_chunk(random: Random) -> tuple[bytes, bytes]:
    kind = random.choice(_CHUNKS)
    bodies = {
        b"acTL": struct.pack(">II", number(random), number(random)),
        b"fcTL": struct.pack(">IIIIIHHBB", *(number(random) for _ in range(5)), 1, 1, 0, 0),
        b"IDAT": bomb(8),
        b"tRNS": random.randbytes(random.choice((0, 1, 2, 6, 7, 300))),
        b"PLTE": random.randbytes(random.choice((0, 3, 5, 768, 900))),
    }
    return kind, bodies.get(kind, _metadata(random, kind))


def _metadata(random: Random, kind: bytes) -> bytes:
    packed = random.choice((bomb(2), bomb(64), b"", random.randbytes(30)))
    bodies = {
        b"zTXt": b"key\0\0" + packed,
        b"iTXt": b"key\0\1\0\0\0" + packed,
        b"iCCP": b"name\0\0" + packed,
        b"tEXt": b"k" * random.choice((0, 1, 80, 5000)) + b"\0text",
        b"pHYs": struct.pack(">IIB", number(random), number(random), random.randrange(3)),
        b"eXIf": mutate_exif(random, exif_block()),
    }
    return bodies.get(kind, random.randbytes(random.randrange(20)))


def _changed_header(random: Random, body: bytes) -> bytes:
    header = bytearray(body.ljust(13, b"\0"))
    at = random.choice((0, 4, 8, 9, 10, 11, 12))
    if at < 8:
        struct.pack_into(">I", header, at, number(random))
    else:
        header[at] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return bytes(header)


def _changed_pixels(random: Random, body: bytes) -> bytes:
    try:
        return zlib.compress(change_bytes(random, zlib.decompress(body)))
    except zlib.error:
        return body


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 12: 8, 16: 8}
_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 296, 317, 320, 322, 323, 324, 325, 330)
_TAGS += (338, 339, 347, 530, 32997, 34665, 34675, 34853, 65000)
METADATA_TAGS = (270, 271, 272, 305, 306, 315, 33432, 34675, 34665, 34853, 700)


def _directories(data: bytes) -> tuple[str, bool, list[tuple[int, int]]]:
    """Byte order, whether it is BigTIFF, and (first byte, entries) of each directory, inner ones too."""
    order = ">" if data[:2] == b"MM" else "<"
    big = len(data) > 16 and data[2:4] in (b"+\0", b"\0+")
    found: list[tuple[int, int]] = []
    if len(data) < 16:
        return order, big, found
    count_size, count_code, pointer = (8, "Q", 8) if big else (2, "H", 4)
    pending = [struct.unpack_from(order + ("Q" if big else "I"), data, pointer)[0]]
    while pending and len(found) < 8:
        at = pending.pop()
        if at + count_size > len(data) or at in [start for start, _ in found]:
            continue
        (count,) = struct.unpack_from(order + count_code, data, at)
        count = min(count, (len(data) - at - count_size) // (20 if big else 12))
        if count <= 0:
            continue
        found.append((at, count))
        for i in range(count):
            entry = at + count_size + i * (20 if big else 12)
            if struct.unpack_from(order + "H", data, entry)[0] in (330, 34665, 34853) and not big:
                pending.append(struct.unpack_from(order + "I", data, entry + 8)[0])
    return order, big, found


def _entry(random: Random, data: bytes, metadata: bool) -> tuple[str, bool, int] | None:
    order, big, directories = _directories(data)
    entries = [at + (8 if big else 2) + i * (20 if big else 12) for at, count in directories for i in range(count)]
    if metadata:
        entries = [at for at in entries if struct.unpack_from(order + "H", data, at)[0] in METADATA_TAGS]
    return (order, big, random.choice(entries)) if entries else None


def mutate_tiff(random: Random, data: bytes) -> bytes:
    """A change of one entry of a directory, of the place of its values, of a strip, or of the chain of directories."""
    order, big, directories = _directories(data)
    chosen = _entry(random, data, metadata=False)
    if chosen is None:
        return change_bytes(random, data)
    at = chosen[2]
    code, size = ("Q", 8) if big else ("I", 4)
    changed = bytearray(data)
    (kind,) = struct.unpack_from(order + "H", data, at + 2)
    (count,) = struct.unpack_from(order + code, data, at + 4)
    inline = _SIZES.get(kind, 1) * count <= size
    match random.randrange(9):
        case 0:
            struct.pack_into(order + "H", changed, at, random.choice(_TAGS))
        case 1:
            struct.pack_into(order + "H", changed, at + 2, random.choice((0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99)))
        case 2:
            struct.pack_into(order + code, changed, at + 4, number(random, 8 * size))
        case 3 | 4 if inline and kind in (3, 4):
            struct.pack_into(
                order + ("H" if kind == 3 else "I"), changed, at + 4 + size, number(random, 16 if kind == 3 else 32)
            )
        case 3 | 4:
            struct.pack_into(
                order + code, changed, at + 4 + size, number(random) if random.random() < 0.5 else number(random, 12)
            )
        case 5:  # the next directory: a loop, or nowhere
            start, entries = random.choice(directories)
            pointer = start + (8 + 20 * entries if big else 2 + 12 * entries)
            if pointer + size <= len(data):
                target = random.choice((start, directories[0][0], number(random, 12), len(data)))
                struct.pack_into(order + code, changed, pointer, target)
        case 6:  # a strip that inflates to far more than the picture
            strip, length = len(changed), len(bomb(64))
            changed += bomb(64)
            for start, entries in directories[:1]:
                for i in range(entries):
                    entry = start + (8 if big else 2) + i * (20 if big else 12)
                    (tag,) = struct.unpack_from(order + "H", data, entry)
                    value = {273: strip, 324: strip, 279: length, 325: length}.get(tag)
                    if value is not None:
                        struct.pack_into(order + "H", changed, entry + 2, 16 if big else 4)
                        struct.pack_into(order + code, changed, entry + 4, 1)
                        struct.pack_into(order + code, changed, entry + 4 + size, value)
        case 7:
            return mutate_tiff_metadata(random, data)
        case _:
            return change_bytes(random, data)
    return bytes(changed)


def mutate_tiff_metadata(random: Random, data: bytes) -> bytes:
    """A change of an entry that no pixel depends on."""
    chosen = _entry(random, data, metadata=True)
    if chosen is None:
        return data
    order, big, at = chosen
    changed = bytearray(data)
    code, size = ("Q", 8) if big else ("I", 4)
    where = random.choice((2, 4, 4 + size))
    if where == 2:
        struct.pack_into(order + "H", changed, at + 2, random.randrange(20))
    else:
        struct.pack_into(order + code, changed, at + where, number(random))
    return bytes(changed)


def mutate_exif(random: Random, block: bytes) -> bytes:
    """A change of an EXIF block, which is a TIFF file without pixels."""
    prefix = b"Exif\0\0" if block.startswith(b"Exif\0\0") else b""
    return prefix + mutate_tiff(random, block.removeprefix(prefix))


def split_jpeg(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Segments: the marker's second byte, its body without the length, and the coded data up to the next marker."""
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        code = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + max(length, 2)
        after = end
        if code == 0xDA:
            while after + 1 < len(data) and not (
                data[after] == 0xFF and data[after + 1] not in (0, *range(0xD0, 0xD8))
            ):
                after += 1
        segments.append((code, data[at + 4 : end], data[end:after]))
        at = after
    return segments


def join_jpeg(segments: list[tuple[int, bytes, bytes]]) -> bytes:
    """A JPEG file of these segments, with true lengths."""
    parts = [b"\xff\xd8"]
    for code, body, coded in segments:
        parts += [bytes([0xFF, code]), struct.pack(">H", (len(body) + 2) % 65536), body, coded]
    return b"".join(parts) + b"\xff\xd9"


def mutate_jpeg(random: Random, data: bytes) -> bytes:
    """A change of the segments, with true lengths, or of the coded data."""
    segments = split_jpeg(data)
    if not segments:
        return change_bytes(random, data)
    at = random.randrange(len(segments))
    code, body, coded = segments[at]
    match random.randrange(9):
        case 0:
            segments = rearrange(random, segments)
        case 1 | 2:
            segments[at] = code, change_bytes(random, body)[:65000], coded
        case 3:
            segments[at] = (
                random.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xCC, 0xDA, 0xDB, 0xDD, 0xE1)),
                body,
                coded,
            )
        case 4:  # the header: size, precision, sampling
            segments = [(c, _changed_frame(random, b) if c in (0xC0, 0xC2) else b, d) for c, b, d in segments]
        case 5:  # the last scan again and again
            scans = [segment for segment in segments if segment[0] == 0xDA]
            segments += scans[-1:] * random.choice((1, 90, 3000))
        case 6:
            segments = [(c, b, change_bytes(random, d) if d else d) for c, b, d in segments]
        case 7:
            return mutate_jpeg_metadata(random, data)
        case _:
            return change_bytes(random, data)
    return join_jpeg(segments)


def mutate_jpeg_metadata(random: Random, data: bytes) -> bytes:
    """A change of EXIF, ICC profile or comment."""
    segments = split_jpeg(data)
    which = [i for i, (code, _, _) in enumerate(segments) if code in (0xE1, 0xE2, 0xFE)]
    if which and random.random() < 0.7:
        at = random.choice(which)
        code, body, coded = segments[at]
        change = mutate_exif if body.startswith(b"Exif\0\0") else change_bytes
        segments[at] = code, change(random, body)[:65000], coded
    else:
        exif = b"Exif\0\0" + mutate_exif(random, exif_block())
        body = random.choice((exif, b"ICC_PROFILE\0\1\xff", b"MPF\0II*\0" + random.randbytes(60)))
        segments.insert(1, (random.choice((0xE1, 0xE2)), body, b""))
    return join_jpeg(segments)


def _changed_frame(random: Random, body: bytes) -> bytes:
    frame = bytearray(body.ljust(15, b"\0"))
    at = random.choice((0, 1, 3, 5, 7, 8, 10, 11))
    if at in (1, 3):
        struct.pack_into(">H", frame, at, number(random, 16))
    else:
        frame[at] = random.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x22, 0x44, 0xFF))
    return bytes(frame)


# --- PGM and PPM


def mutate_pnm(random: Random, data: bytes) -> bytes:
    """A change of a number in the header, of the kind, or of any bytes."""
    match random.randrange(4):
        case 0:
            return b"P" + random.choice(b"1234567").to_bytes() + data[2:]
        case 1 | 2:
            numbers = list(re.finditer(rb"\d+", data[2:200]))[:3]
            if numbers:
                at = random.choice(numbers)
                new = random.choice((b"%d" % number(random), b"0", b"65536", b"9" * random.randint(1, 40)))
                return data[: 2 + at.start()] + new + data[2 + at.end() :]
    return change_bytes(random, data)


def mutate_pnm_metadata(random: Random, data: bytes) -> bytes:
    """A comment after the kind, which changes nothing."""
    text = random.randbytes(random.choice((0, 1, 20, 3000))).replace(b"\n", b"").replace(b"\r", b"")
    return data[:2] + b"#" + text + b"\n" + data[2:]


MUTATIONS: dict[str, tuple[Callable[[Random, bytes], bytes], Callable[[Random, bytes], bytes]]] = {
    "png": (mutate_png, mutate_png_metadata),
    "tiff": (mutate_tiff, mutate_tiff_metadata),
    "jpeg": (mutate_jpeg, mutate_jpeg_metadata),
    "pnm": (mutate_pnm, mutate_pnm_metadata),
}
"""Format -> a change of anything, and one after which the pixels are the same or the file is refused."""
