import zlib

import numpy as np
import pytest

from ldp_runtime.images import deflate
from tests.ldp_runtime.images.pictures import noise


@pytest.mark.parametrize("sizes", [(1,), (0, 3), (5, 0, 70_000), (65_521, 65_521, 1), (2_000_000,)])
def test_the_checksum_of_a_stream_is_that_of_its_strips(sizes: tuple[int, ...]) -> None:
    strips = [noise(size, seed=size).tobytes() for size in sizes]
    parts = [(zlib.adler32(strip), len(strip)) for strip in strips]
    assert deflate.stream_checksum(parts) == zlib.adler32(b"".join(strips))


@pytest.mark.parametrize("sizes", [(1,), (40_000, 3), (3, 40_000, 1, 100_000)])
def test_parts_are_one_stream(sizes: tuple[int, ...]) -> None:
    strips = [noise(size, seed=size) // 20 for size in sizes]
    parts = [deflate.deflate_part(strip, last=strip is strips[-1]) for strip in strips]
    checksum = deflate.stream_checksum([(zlib.adler32(strip), strip.size) for strip in strips])
    stream = zlib.decompressobj()
    whole = stream.decompress(deflate.STREAM_HEADER + b"".join(parts) + checksum.to_bytes(4, "big"))
    assert stream.eof
    assert whole == b"".join(strip.tobytes() for strip in strips)


def test_no_part_needs_another() -> None:
    strip = noise(3000)
    first, second = (deflate.deflate_part(strip, last=last) for last in (False, True))
    assert len(second) > 2900  # a match with the strip before would take a few bytes
    assert zlib.decompress(second, -zlib.MAX_WBITS) == strip.tobytes()
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(first) == strip.tobytes()


def test_a_strip_may_have_any_shape() -> None:
    strip = noise(7, 5, 3) // 50
    assert zlib.decompress(deflate.deflate(strip)) == strip.tobytes()


def test_matches_are_used_where_they_pay() -> None:
    noisy = np.rint(np.random.default_rng(0).normal(0, 30, 300_000)).astype(np.int8).view(np.uint8)
    repeated = np.tile(noise(1000), 300)
    runs = np.repeat(noise(3000), 100)
    for strip, most in ((noisy, 1.0), (repeated, 1.0), (runs, 1.6)):
        assert len(deflate.deflate(strip)) <= most * len(zlib.compress(strip, deflate.LEVEL))
    assert len(deflate.deflate(repeated)) < repeated.size / 50


def test_strips_have_a_row_at_least() -> None:
    assert deflate.strip_rows(2**25) == 1
    assert deflate.strip_rows(1000) == deflate.STRIP_BYTES // 1000
