import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.ldp_runtime.images.pictures import RGB8, RGB16, noise, pillow, png16, png_chunk, read, refusal

BOMB = zlib.compress(bytes(2**26), 9)
"""64 MiB of zeros in 64 KiB."""


def test_a_second_or_a_late_header_is_refused(tmp_path: Path) -> None:
    whole = png16(RGB16, 2)
    header, rest = whole[8:33], whole[33:]
    text = png_chunk(b"tEXt", b"a" * 4 + b"\x10")
    assert "one header, first of all" in refusal(tmp_path, whole[:8] + header + header + rest)
    assert "one header, first of all" in refusal(tmp_path, whole[:8] + text + header + rest)
    read(tmp_path, whole[:8] + header + text + rest)


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")])
def test_a_bomb_in_a_text_or_profile_is_refused(tmp_path: Path, kind: bytes, head: bytes) -> None:
    whole, chunk = pillow(RGB8, "PNG"), png_chunk(kind, head + BOMB)
    assert "damaged or truncated" in refusal(tmp_path, whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize("whole", [pillow(noise(20, 20, 3), "PNG"), png16(noise(20, 20, 3, dtype=np.uint16), 2)])
def test_a_flipped_bit_is_refused(tmp_path: Path, whole: bytes) -> None:
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    assert "checksum" in refusal(tmp_path, bytes(data))
