import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldp_runtime.images.exif import LONG, RATIONAL, SHORT, UNDEFINED, Directory, clean_exif, header, numbers, read_block
from ldp_runtime.images.exif import write_directory as write


def block(tags: Directory, order: str = "<") -> bytes:
    return header(order, 8) + write(order, tags, 8)  # type: ignore[arg-type]


def text(value: str) -> tuple[int, int, bytes]:
    raw = value.encode() + b"\0"
    return 2, len(raw), raw


@pytest.mark.parametrize("order", ["<", ">"])
def test_round_trip_keeps_types_and_bytes(order: str) -> None:
    tags: Directory = {
        0x010F: text("Maker with a long name"),
        0x0112: numbers(order, SHORT, 1),
        0x8769: {
            0x829A: numbers(order, RATIONAL, 1, 100),
            0x9204: (10, 1, struct.pack(order + "ii", 0, 3)),
            0x927C: (UNDEFINED, 7, b"\1\2\3\4\5\6\7"),
            0xA002: numbers(order, LONG, 4000),
        },
        0x8825: {1: text("N"), 2: numbers(order, RATIONAL, 48, 1, 8, 1, 30, 1)},
    }
    assert read_block(block(tags, order)) == (order, tags)
    assert clean_exif(block(tags, order)) == (1, block(tags, order))

    pillow = Image.Exif()
    pillow.load(block(tags, order))
    assert pillow[0x010F] == "Maker with a long name"
    assert pillow.get_ifd(0x8769)[0x829A] == 0.01
    assert pillow.get_ifd(0x8769)[0x927C] == b"\1\2\3\4\5\6\7"
    assert pillow.get_ifd(0x8825)[2] == (48.0, 8.0, 30.0)


def test_the_block_of_a_camera_file_keeps_what_describes_the_photo() -> None:
    inner: Directory = {0xA002: numbers("<", LONG, 60), 0xA003: numbers("<", SHORT, 40)}
    tags: Directory = {
        0x0100: numbers("<", LONG, 60),
        0x010E: text("A view"),
        0x0111: numbers("<", LONG, 1234),
        0x0112: numbers("<", SHORT, 6),
        0x011A: numbers("<", RATIONAL, 72, 1),
        0x8769: inner | {0xA005: numbers("<", LONG, 26)},
    }
    data = bytearray(block(tags))
    # A pointer to a second directory, as a thumbnail has it.
    struct.pack_into("<I", data, 8 + 2 + 12 * len(tags), 8)
    orientation, clean = clean_exif(b"Exif\0\0" + bytes(data))
    assert orientation == 6
    assert clean is not None
    assert read_block(clean)[1] == {
        0x010E: text("A view"),
        0x0112: numbers("<", SHORT, 1),
        0x8769: {0xA002: inner[0xA003], 0xA003: inner[0xA002]},  # turned by 90 degrees
    }
    assert struct.unpack_from("<I", clean, 8 + 2 + 12 * 3) == (0,)


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (b"", 1),
        (b"II*\0", 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"garbage, not a block", 1),
        (block({0x0112: numbers("<", SHORT, 6)}), 6),
        (block({0x0112: numbers("<", SHORT, 0)}), 1),
        (block({0x0112: numbers("<", SHORT, 9)}), 1),
        (block({0x0112: text("six")}), 1),
    ],
)
def test_nothing_to_keep(data: bytes, orientation: int) -> None:
    assert clean_exif(data) == (orientation, None)


def test_an_entry_that_points_outside_is_left_out() -> None:
    data = block({0x010E: text("A description"), 0x010F: text("Maker"), 0x0110: text("abc")})
    _, tags = read_block(data[: data.index(b"Maker")])
    assert tags == {0x010E: text("A description"), 0x0110: text("abc")}


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_bytes_give_an_orientation_and_a_block_that_reads_the_same(data: bytes, start: bytes) -> None:
    orientation, clean = clean_exif(start + data)
    assert 1 <= orientation <= 8
    if clean is not None:
        assert clean_exif(clean) == (1, clean)


def test_values_that_overlap_cannot_fill_the_memory() -> None:
    value = 100_000
    entries = b"".join(struct.pack("<HHII", 0x9000 + i, 7, value, 8) for i in range(500))
    block = b"II*\0" + struct.pack("<I", 8 + value) + bytes(value) + struct.pack("<H", 500) + entries
    order, tags = read_block(block)
    assert order == "<"
    assert sum(len(entry[2]) for entry in tags.values()) <= len(block)
    assert len(tags) == 1
