"""The check of pairs: good ones raise no alarm, faults are found."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from ldp_export.simulation.samples import focus_setting
from ldp_export.simulation.simulate import simulate_pair
from ldp_runtime.paircheck.check import check_pair
from ldp_runtime.paircheck.measure import AREA, measure
from tests.ldp_runtime.paircheck.faults import Pair, exposed, lowered, of_bits, sum_and_view, turned
from tests.sample import near_sample

H, W = 128, 192


def textures() -> Iterator[tuple[str, np.ndarray]]:
    """Sharp pictures of the kinds that are hard to measure shifts on."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:H, 0:W].astype(np.float32)
    noise = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
    yield "smooth", cv2.GaussianBlur(noise, (0, 0), 40)
    yield "fine", cv2.GaussianBlur(noise, (0, 0), 1.5)
    yield "coarse", cv2.GaussianBlur(noise, (0, 0), 6)
    yield "stripes", np.sin(2 * np.pi * x / 9)[..., None]
    for period in (6, 14):
        yield f"checks {period}", (np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period))[..., None]
    blocks = rng.uniform(0, 255, (H // 16, W // 16, 3)).astype(np.float32)
    yield "blocks", cv2.resize(blocks, (W, H), interpolation=cv2.INTER_NEAREST)
    flat = np.full((H, W, 3), 128, np.float32)
    flat[H // 2 : 3 * H // 4, 2 * W // 3 :] = 200
    yield "flat", flat


def good_pairs() -> Iterator[tuple[str, Pair]]:
    """40 good pairs: textures by blurs, and the sample."""
    y, x = np.mgrid[0:H, 0:W].astype(np.float32)
    blurs = {"mild": (y / H - 0.5) * 2, "both": (x / W - 0.5) * 12, "one-sided": 2 + 4 * y / H, "strong": 6.5 + 0 * x}
    for name, texture in textures():
        low, high = texture.min(), texture.max()
        picture = np.broadcast_to(20 + 215 * (texture - low) / (high - low), (H, W, 3)).astype(np.uint8)
        for blur, coc in blurs.items():
            pair = simulate_pair(picture, coc.astype(np.float32))
            yield f"{name}, {blur}", (pair.left, pair.right)
    rng = np.random.default_rng(1)
    for variant in ("standard", "mild", "noise3", "jpeg90", "in_focus"):
        sample = near_sample() if variant == "standard" else focus_setting("near", variant)
        views = (sample.left, sample.right)
        yield variant, views
        if variant in ("standard", "mild"):
            noisy = [np.clip(v + 8 * rng.standard_normal(v.shape), 0, 255).astype(np.uint8) for v in views]
            yield f"{variant}, noise of 8", (noisy[0], noisy[1])
            grey = [np.repeat(v.mean(2, keepdims=True), 3, 2).astype(np.uint8) for v in views]
            yield f"{variant}, grey", (grey[0], grey[1])


def test_good_pairs_raise_no_alarm() -> None:
    alarms, count = {}, 0
    for name, pair in good_pairs():
        check, count = check_pair(*pair), count + 1
        if check.faults:
            alarms[name] = check.notes
    assert count >= 40
    assert not alarms


@pytest.fixture(scope="module")
def sample() -> Pair:
    pair = near_sample()
    return pair.left, pair.right


def kinds(pair: Pair, axis: str = "horizontal") -> list[str]:
    return [fault.kind for fault in check_pair(*pair, axis=axis).faults]


def test_each_fault_is_found(sample: Pair) -> None:
    assert kinds(exposed(sample, -0.2)) == ["exposure"]
    assert kinds(sum_and_view(sample, 0.5)) == ["sum"]
    assert kinds(turned(sample)) == ["axis"]
    assert kinds(turned(sample), "vertical") == []
    assert kinds(lowered(sample, 0.75)) == ["shift"]
    assert kinds(of_bits(sample, 10)) == kinds(of_bits(sample, 14)) == ["bits"]
    assert kinds((sample[0], sample[0])) == ["identical"]


def test_what_is_refused_and_only_that_says_how_to_go_on(sample: Pair) -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)  # a warning alone: it goes on by itself
    for view, mode, refused in ((sample[0], "auto", True), (sample[0], "warn", False), (flat, "auto", False)):
        check = check_pair(view, view, mode=mode)
        assert [note.endswith("or give --check warn to go on") for note in check.notes] == [refused]
        if not refused:
            check.raise_refused()


def test_two_faults_at_once(sample: Pair) -> None:
    check = check_pair(*lowered(turned(of_bits(sample, 12)), 0))
    assert {fault.kind for fault in check.faults} == {"axis", "bits"}
    assert {fault.kind for fault in check_pair(*exposed(lowered(sample, 3), 0.5)).faults} == {"shift", "exposure"}


def test_a_profile_that_says_so_ends_the_guess(sample: Pair) -> None:
    dark = tuple((view.astype(np.float32) ** 2.2 / 255**1.2).astype(np.uint8) for view in sample)
    assert [fault.kind for fault in check_pair(dark[0], dark[1]).faults] == ["linear"]
    assert not check_pair(dark[0], dark[1], linear=False).faults


@pytest.mark.parametrize("size", [(500, 741), (3000, 4000), (40, 9000)])
def test_what_is_measured_does_not_grow_with_the_photo(size: tuple[int, int]) -> None:
    """So the check is a small share of the time of a restoration, which does grow."""
    scale = measure(*np.zeros((2, *size, 3), np.uint8)).scale
    assert size[0] * size[1] / scale**2 < 2 * AREA


def test_small_pictures_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (2, 40), (40, 3), (30, 50)):
        view = rng.integers(0, 256, (*size, 3), np.uint8)
        assert not [f for f in check_pair(view, np.roll(view, 1, 0)).faults if f.kind in ("axis", "shift", "sum")]
