import sys

import cv2
import numpy as np
import pytest

from ldp_runtime.errors import ImageError, LDPError
from ldp_runtime.images.exif import read_block
from ldp_runtime.images.linear import encode_srgb
from ldp_runtime.images.quality import psnr
from ldp_runtime.images.raw import COMBINED, LEFT, RIGHT, develop, raw_size
from tests.ldp_runtime.images import raw_files
from tests.ldp_runtime.images.raw_files import cr2, cr3, dng, fake_libraw, make_frames, with_margins

pytest.importorskip("rawpy")
H, W = 96, 128


def light(seed: int, shift: int = 0) -> np.ndarray:
    """A smooth scene in linear light, which no demosaicking changes much."""
    coarse = np.random.default_rng(seed).uniform(0.05, 0.95, (6, 8, 3))
    return np.roll(cv2.resize(coarse, (W, H), interpolation=cv2.INTER_CUBIC).clip(0, 1), shift, axis=1)


VIEWS = light(0, -2), light(0, 2)
FRAMES = make_frames(*VIEWS)


@pytest.mark.parametrize("samples", [True, False], ids=["two samples", "two images"])
def test_a_dng_gives_both_views_developed_alike(samples: bool) -> None:
    data = dng(FRAMES, samples=samples)
    left, right, combined = develop("a.dng", data, (LEFT, RIGHT, COMBINED))
    for photo, scene in ((left, VIEWS[0]), (right, VIEWS[1]), (combined, (VIEWS[0] + VIEWS[1]) / 2)):
        assert photo.pixels.dtype == np.uint16
        assert psnr(photo.pixels[4:-4, 4:-4], encode_srgb(scene)[4:-4, 4:-4], data_range=65535) > 34
    assert raw_size("a.dng", data) == (W, H)
    assert "--swap" in left.notes[0]
    assert combined.notes == ()
    assert read_block(left.exif or b"")[1][0x0110] == (2, 6, b"Model\0")


def test_orientation_is_applied_and_remembered() -> None:
    upright = next(develop("a.dng", dng(FRAMES), [LEFT]))
    turned = next(develop("a.dng", dng(FRAMES, orientation=6), [LEFT]))
    assert turned.orientation == 6
    np.testing.assert_array_equal(turned.pixels, np.rot90(upright.pixels, -1))


def test_highlights_are_white_and_alike() -> None:
    """Without the clip at half of the range green of the difference is too small, or too large beside the others."""
    bright = np.ones((H, W, 3))
    bright[:, : W // 2] = np.linspace(0, 1, W // 2)[:, None]
    left, right = develop("a.dng", dng(make_frames(bright, bright, gain=0.9)))
    for photo in (left, right):
        assert photo.pixels[:, W // 2 + 4 :].min() == 65535
        cast = np.ptp(photo.pixels[8:-8, 8 : W // 2 - 8].astype(int), axis=2)
        assert cast.max() < 65535 * 0.04  # noise


def test_a_second_file_may_hold_the_second_frame() -> None:
    both = list(develop("a.dng", dng(FRAMES)))
    apart = list(develop("a-1.dng", dng(FRAMES[:1]), second=("a-2.dng", dng(FRAMES[1:]))))
    for one, other in zip(both, apart, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("data", [cr2(), cr3()], ids=["cr2", "cr3"])
def test_canon_files_with_margins_like_a_5d_mark_iv(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The black level of the second frame is in no metadata: without the margin it would be 48 too low."""
    expected = list(develop("a.dng", dng(FRAMES), (LEFT, RIGHT, COMBINED)))
    frames = with_margins(FRAMES[0], 511), with_margins(FRAMES[1] + np.uint16(48), raw_files.BLACK + 48)
    fake_libraw(monkeypatch, frames)
    found = list(develop("a.cr", data, (LEFT, RIGHT, COMBINED)))
    assert raw_size("a.cr", data) == (W, H)
    for photo, other in zip(found, expected, strict=True):
        assert photo.pixels.shape == (H, W, 3)
        assert psnr(photo.pixels[4:-4, 4:-4], other.pixels[4:-4, 4:-4], data_range=65535) > 45
        assert read_block(photo.exif or b"")[1][0x010F] == (2, 6, b"Maker\0")


BURST = FRAMES[0], (FRAMES[0] + np.random.default_rng(2).integers(0, 9, FRAMES[0].shape)).astype(np.uint16)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (FRAMES[:1], "one frame"),
        (BURST, "two frames of the same exposure, as a burst has them"),
        ((FRAMES[0], make_frames(light(5), light(6))[1]), "not a sum and one view of it"),
    ],
    ids=["one", "burst", "other"],
)
def test_other_raw_files_are_named(frames: tuple[np.ndarray, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [dng(frames), dng(frames, samples=False)]
    for data in contents:
        with pytest.raises(
            ImageError, match=f"is not a dual-pixel photo: it holds .*{words}.*switch Dual Pixel RAW on"
        ):
            list(develop("a.dng", data))
    fake_libraw(monkeypatch, [with_margins(frame, 512) for frame in frames])
    with pytest.raises(ImageError, match=f"{words}, and its tag says that Dual Pixel RAW was off; expected"):
        list(develop("a.cr3", cr3(on=False)))


def test_damaged_files_are_errors_of_one_line() -> None:
    data = dng(FRAMES)
    for damaged in (data[:1000], data[: len(data) // 2], data[:8] + bytes(len(data) - 8), cr3(), cr2()):
        with pytest.raises(ImageError) as caught:
            list(develop("a.dng", damaged))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("a.dng ")


@pytest.mark.parametrize(("side", "words"), [(60000, "at most"), (8000, "cannot hold the 8000 x 8000 px")])
def test_the_size_is_checked_before_anything_is_decoded(side: int, words: str) -> None:
    data = dng(FRAMES)
    for tag, old in ((256, W), (257, H), (278, H)):
        data = data.replace(struct_long(tag, old), struct_long(tag, side))
    with pytest.raises(ImageError, match=words):
        raw_size("a.dng", data)


def struct_long(tag: int, value: int) -> bytes:
    return tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")


def test_too_little_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    rawpy = pytest.importorskip("rawpy")

    def postprocess(*_: object, **__: object) -> None:
        raise rawpy.LibRawUnsufficientMemoryError(b"Insufficient memory")

    monkeypatch.setattr("ldp_runtime.images.raw._develop", postprocess)
    with pytest.raises(MemoryError):
        list(develop("a.dng", dng(FRAMES)))


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(LDPError, match=r"pip install 'ldp\[raw\]'"):
        list(develop("a.dng", dng(FRAMES)))
