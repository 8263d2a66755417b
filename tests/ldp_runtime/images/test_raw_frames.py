from typing import Any

import numpy as np
import pytest

from ldp_runtime.images.raw_frames import Frame, Pairing, measured_black, pairing, view_rows
from tests.ldp_runtime.images.pictures import noise
from tests.ldp_runtime.images.raw_files import BLACK, LEFT, TOP, WHITE, with_margins

METADATA = np.full((2, 2), BLACK, np.int32)


def frame(samples: Any, black: int = BLACK) -> Frame:
    return Frame(np.asarray(samples, np.uint16), np.full((2, 2), black, np.int32), 0, 0)


def textured(seed: int, scale: float) -> np.ndarray:
    light = np.kron(np.random.default_rng(seed).uniform(0.1, 0.9, (12, 16)), np.ones((8, 8)))
    return np.rint(BLACK + light * scale * (WHITE - BLACK)).astype(np.uint16)


@pytest.mark.parametrize(("top", "left"), [(TOP, LEFT), (TOP, 0), (TOP + 1, LEFT + 1)])
def test_black_is_measured_in_the_masked_margin(top: int, left: int) -> None:
    samples = with_margins(noise(100, 150, dtype=np.uint16), 530, top, left)
    np.testing.assert_allclose(measured_black(samples, METADATA, top, left, WHITE), 530, atol=1)


def test_black_by_colour() -> None:
    samples = np.tile(np.array([[500, 510], [520, 530]], np.uint16), (200, 200))
    np.testing.assert_array_equal(measured_black(samples, METADATA, TOP, LEFT, WHITE), [[500, 510], [520, 530]])


@pytest.mark.parametrize(
    "margin",
    [
        noise(300, 300, dtype=np.uint16),  # light reaches it
        np.full((300, 300), 6000, np.uint16),
    ],
)
def test_a_margin_that_is_not_masked_is_not_used(margin: np.ndarray) -> None:
    assert measured_black(margin, METADATA, TOP, LEFT, WHITE) is METADATA
    assert measured_black(margin, METADATA, 0, 0, WHITE) is METADATA


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (textured(0, 0.45), Pairing.DUAL_PIXEL),
        (textured(0, 0.9), Pairing.NONE),
        (textured(0, 0.88), Pairing.WHOLE),
        (textured(1, 0.45), Pairing.OTHER),
        (textured(0, 0.06), Pairing.OTHER),
    ],
    ids=lambda value: value.name if isinstance(value, Pairing) else "",
)
def test_pairing(second: np.ndarray, expected: Pairing) -> None:
    assert pairing(frame(textured(0, 0.9)), frame(second), WHITE) is expected


def test_frames_without_light_or_all_white_say_nothing() -> None:
    dark, darker = (noise(64, 64, seed=seed).astype(np.uint16) // 64 + BLACK for seed in range(2))
    assert pairing(frame(dark), frame(darker), WHITE) is Pairing.DARK
    assert pairing(frame(np.full((64, 64), WHITE)), frame(darker), WHITE) is Pairing.DARK


def test_a_flat_wall_is_known_by_its_exposure_alone() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(3000, 20, (96, 96)) for _ in range(2))
    assert pairing(frame(one + other + BLACK), frame(other + BLACK), WHITE) is Pairing.DUAL_PIXEL
    assert pairing(frame(one + BLACK), frame(other + BLACK), WHITE) is Pairing.WHOLE


def views(main: Frame, second: Frame, black: np.ndarray = METADATA) -> dict[str, np.ndarray]:
    found = {}
    for view in ("difference", "second", "sum"):
        out = np.zeros_like(main.samples)
        for rows, samples in view_rows(main, second, view, WHITE, black):
            out[rows] = samples
        found[view] = out.astype(int)
    return found


def test_each_frame_loses_its_own_black_and_keeps_its_exposure() -> None:
    a, b = (np.random.default_rng(seed).integers(0, 4000, (600, 7)) for seed in range(2))
    found = views(frame(a + b + 500, 500), frame(b + 540, 540))
    np.testing.assert_array_equal(found["difference"], 2 * a + BLACK)
    np.testing.assert_array_equal(found["second"], 2 * b + BLACK)
    np.testing.assert_array_equal(found["sum"], a + b + BLACK)


def test_views_clip_at_half_of_the_range_where_the_sum_clips_too() -> None:
    # Columns: dark, below the limit, one view above half of the range, the sum clipped with B small, both large.
    span = WHITE - BLACK
    a = np.array([[0, 5000, 9000, 12000, 10000]] * 2)
    b = np.array([[0, 5000, 3000, 7000, 12000]] * 2)
    found = views(frame(np.minimum(a + b + BLACK, WHITE)), frame(np.minimum(b + BLACK, WHITE)))
    assert found["difference"][0].tolist() == [BLACK, 10000 + BLACK, WHITE, WHITE, WHITE]
    assert found["second"][0].tolist() == [BLACK, 10000 + BLACK, 6000 + BLACK, 14000 + BLACK, WHITE]
    assert found["sum"][0].tolist() == [BLACK, 10000 + BLACK, 12000 + BLACK, WHITE, WHITE]
    assert span == WHITE - BLACK


def test_noise_below_black_does_not_wrap() -> None:
    found = views(frame([[500, 520], [512, 505]]), frame([[520, 500], [512, 511]]))
    assert found["difference"].tolist() == [[BLACK, 2 * 20 + BLACK], [BLACK, BLACK]]
    assert found["second"].tolist() == [[2 * 8 + BLACK, BLACK], [BLACK, BLACK]]
