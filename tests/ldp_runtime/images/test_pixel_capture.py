from pathlib import Path

import numpy as np
import pytest

from ldp_runtime.errors import ImageError
from ldp_runtime.images.pair_files import read_target, read_views
from ldp_runtime.images.photo import read_photo, write_pixels
from ldp_runtime.images.pixel_capture import BLACK, has_capture_names

LEFT, RIGHT = "20240101_120000_000_left.pgm", "20240101_120000_000_right.pgm"


def save(folder: Path, *, black: int = BLACK, names: tuple[str, str] = (LEFT, RIGHT)) -> list[Path]:
    """A ramp of linear light along x in each view, 8 rows of 30."""
    light = np.tile(np.linspace(0, 1, 30), (8, 1))
    for name in names:
        write_pixels(folder / name, np.rint(black + light * (65535 - black)).astype(np.uint16))
    return [folder / name for name in names]


def test_a_capture_is_developed(tmp_path: Path) -> None:
    views = read_views(*save(tmp_path))
    assert views.left.grey
    assert views.left.pixels.shape == (16, 30, 3)  # square pixels
    assert views.left.pixels[0, 0, 0] == 0
    assert views.left.pixels[0, -1, 0] == 65535
    middle = views.left.pixels[5, 15, 0] / 65535
    assert middle == pytest.approx(1.055 * (15 / 29) ** (1 / 2.4) - 0.055, abs=1e-3)
    assert len(views.notes) == 1
    assert "black level 4096" in views.notes[0]


@pytest.mark.parametrize(
    ("black", "names"), [(0, (LEFT, RIGHT)), (BLACK, ("a_L.pgm", "a_R.pgm")), (BLACK, ("a_left.png", "a_right.png"))]
)
def test_other_pictures_are_left_as_they_are(tmp_path: Path, black: int, names: tuple[str, str]) -> None:
    paths = save(tmp_path, black=black, names=names)
    views = read_views(*paths)
    np.testing.assert_array_equal(views.left.pixels, read_photo(paths[0]).pixels)
    assert views.notes == ()


def test_a_target_is_developed_as_the_views_are(tmp_path: Path) -> None:
    paths = save(tmp_path)
    left = read_views(*paths).left
    target = read_target(paths[1].rename(tmp_path / "target.pgm"), left)
    np.testing.assert_array_equal(target.pixels, left.pixels)
    developed = tmp_path / "developed.png"
    write_pixels(developed, left.pixels)
    np.testing.assert_array_equal(read_target(developed, left).pixels, left.pixels)
    (tmp_path / "black").mkdir()
    no_capture = save(tmp_path / "black", black=0)[0]
    with pytest.raises(ImageError, match="is 30 x 8 px; expected 30 x 16 px as the views"):
        read_target(no_capture, left)


def test_names() -> None:
    assert has_capture_names([LEFT, RIGHT])
    assert has_capture_names([f"x/{RIGHT}", LEFT.upper()])
    assert not has_capture_names([LEFT, LEFT])
    assert not has_capture_names([LEFT])
    assert has_capture_names([RIGHT.replace(".pgm", ".png"), LEFT.replace(".pgm", ".png")])
    assert not has_capture_names(["a_left.png", "a_right.png"])  # any photo may be called so
