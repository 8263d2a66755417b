import numpy as np
import pytest

from ldp_runtime.images import visualize
from ldp_runtime.images.visualize import colour_blur_map, comparison

BACKGROUND = 24


def find(canvas: np.ndarray, panel: np.ndarray) -> list[tuple[int, int]]:
    """Where a panel stands in a canvas, as (y, x)."""
    h, w = panel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(canvas, panel.shape)[:, :, 0]
    return [(int(y), int(x)) for y, x in np.argwhere((windows == panel).all(axis=(2, 3, 4)))] if h and w else []


def panel(seed: int, h: int = 12, w: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_blur_map_gets_lighter_where_it_is_blurred() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(3, axis=0)
    colours = colour_blur_map(ramp)
    assert colours.shape == (3, 64, 3)
    assert colours.dtype == np.uint8
    luminance = colours[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()
    assert luminance[0] < 5
    assert luminance[-1] > 230
    red, _, blue = colours[0, 40]
    assert red > blue  # RGB, not BGR
    np.testing.assert_array_equal(colour_blur_map(np.array([[-1, 2]])), colour_blur_map(np.array([[0, 1]])))


def test_panels_stand_side_by_side_with_labels() -> None:
    panels = {"First": panel(0), "Second": panel(1), "Third": panel(2)}
    canvas = comparison(panels)
    places = [find(canvas, image) for image in panels.values()]
    assert [len(place) for place in places] == [1, 1, 1]
    (y0, x0), (y1, x1), (y2, x2) = (place[0] for place in places)
    assert y0 == y1 == y2
    assert x0 + 16 < x1 and x1 + 16 < x2
    for x, end in ((x0, x1), (x1, x2), (x2, canvas.shape[1])):
        label = canvas[:y0, x:end]
        assert (label.max(axis=(0, 1)) > 200).all()  # light text
        assert (label == BACKGROUND).mean() > 0.5
    assert (canvas[y0 + 12 :] == BACKGROUND).all()


def test_labels_differ() -> None:
    one, other = (comparison({name: panel(0)}) for name in ("Restored: 30.1 dB", "Restored: 30.2 dB"))
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


def test_four_panels_make_two_rows() -> None:
    panels = {str(i): panel(i) for i in range(4)}
    canvas = comparison(panels)
    (a,), (b,), (c,), (d,) = (find(canvas, image) for image in panels.values())
    assert a[0] == b[0] < c[0] == d[0]
    assert a[1] == c[1] < b[1] == d[1]


@pytest.mark.parametrize(
    "image", [panel(3).astype(np.uint16) * 257, (panel(3) / 255).astype(np.float32)], ids=["uint16", "float"]
)
def test_other_dtypes_are_scaled_to_8_bits(image: np.ndarray) -> None:
    assert len(find(comparison({"x": image}), panel(3))) == 1


def test_large_panels_are_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualize, "PANEL_SIDE", 20)
    canvas = comparison({"": np.full((30, 80, 3), 200, np.uint8)})
    rows, columns = np.nonzero((canvas == 200).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (8, 20)
