"""ICC profiles of a pair."""

from __future__ import annotations

import struct

import numpy as np
from PIL import ImageCms

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.icc import Profile, match_profiles

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NAMES = ("left.png", "right.png")


def gamma_profile(gamma: float, matrix: np.ndarray) -> bytes:
    """A profile of a matrix and a power."""
    tags = {f"{c}XYZ".encode(): b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(matrix[:, i] * 65536).astype(int))
            for i, c in enumerate("rgb")}  # fmt: skip
    tags |= {f"{c}TRC".encode(): b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) for c in "rgb"}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    return bytes(16) + b"RGB XYZ " + bytes(104) + struct.pack(">I", len(tags)) + table + body


def photo(profile: bytes | None, pixels: np.ndarray) -> Photo:
    return Photo(pixels, icc_profile=profile)


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_the_same_in_other_bytes_is_the_same() -> None:
    for other in (SRGB, None, SRGB[:24] + b"\x07" + SRGB[25:]):
        second, linear, warnings = match_profiles(photo(SRGB, PIXELS), photo(other, PIXELS), NAMES)
        assert (linear, warnings) == (False, ())
        assert second.pixels is PIXELS


def test_a_view_is_brought_into_the_other_profile() -> None:
    wide = Profile.srgb().matrix @ np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    profile = Profile.parse(gamma_profile(1.8, wide))
    srgb = Profile.parse(SRGB)
    assert profile is not None and srgb is not None and srgb.equals(Profile.srgb())
    deep = PIXELS.astype(np.uint16) * 200 + 4000
    there = srgb.convert(profile.convert(deep, srgb), profile)
    inside = (profile.convert(deep, srgb) > 0).all(axis=2) & (profile.convert(deep, srgb) < 65535).all(axis=2)
    assert inside.mean() > 0.3
    assert np.abs(there.astype(int) - deep)[inside].max() < 200
    second, _, warnings = match_profiles(photo(SRGB, deep), photo(gamma_profile(1.8, wide), deep), NAMES)
    assert "right.png was converted" in warnings[0]
    np.testing.assert_array_equal(second.pixels, profile.convert(deep, srgb))


def test_a_linear_profile_is_known() -> None:
    linear = gamma_profile(1.0, Profile.srgb().matrix)
    assert match_profiles(photo(linear, PIXELS), photo(linear, PIXELS), NAMES)[1] is True


def test_damaged_profiles_are_told_and_left_alone() -> None:
    for content in (b"", b"x" * 300, SRGB[:200]):
        second, linear, warnings = match_profiles(photo(SRGB, PIXELS), photo(content, PIXELS), NAMES)
        assert second.pixels is PIXELS and linear is False and "different ICC profiles" in warnings[0]
