import json
import os
from pathlib import Path

import numpy as np
import pytest

from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.raw import develop
from tests.ldp_runtime.conftest import Run, check_error, files
from tests.ldp_runtime.images.raw_files import small_dng

pytest.importorskip("rawpy")
DATA = small_dng(orientation=6)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "IMG_1.DNG"
    path.write_bytes(DATA)
    return path


def test_the_views_are_written(run: Run, photo: Path, tmp_path: Path) -> None:
    code, out, err = run("split", photo, "-o", tmp_path / "new/views")
    assert (code, err) == (0, "")
    assert out.startswith("photo    32 x 40 px, 16 bits\nnote     the file does not say which side")
    assert files(tmp_path / "new/views") == {"IMG_1_L.tif", "IMG_1_R.tif", "IMG_1_combined.tif"}
    expected = develop("a", DATA, ("left", "right", "combined"))
    for end, view in zip(("L", "R", "combined"), expected, strict=True):
        written = read_photo(tmp_path / f"new/views/IMG_1_{end}.tif")
        np.testing.assert_array_equal(written.pixels, view.pixels)
        assert written.orientation == 1
        assert b"Model" in (written.exif or b"")


def test_swap_format_and_json(run: Run, photo: Path, tmp_path: Path) -> None:
    code, out, _ = run("split", photo, "-o", tmp_path / "views", "--swap", "--format", "png", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["width"], report["height"]) == (32, 40)
    left, right = develop("a", DATA)
    np.testing.assert_array_equal(read_photo(report["outputs"]["left"]).pixels, right.pixels)
    np.testing.assert_array_equal(read_photo(report["outputs"]["right"]).pixels, left.pixels)
    assert run("split", photo, "-o", tmp_path / "views", "-q") == (0, "", "")


def test_errors_leave_nothing(run: Run, photo: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    out = tmp_path / "views"
    check_error(run("split", pair[0], "-o", out), "is no CR2, CR3 or DNG file")
    check_error(run("split", tmp_path / "none.cr3", "-o", out), "does not exist")
    check_error(run("split", photo, "-o", pair[0]), "cannot be written")
    photo.write_bytes(DATA[: len(DATA) // 2])
    check_error(run("split", photo, "-o", out), "IMG_1.DNG is")
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_read_only(run: Run, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "views"
    out.mkdir(mode=0o500)
    check_error(run("split", photo, "-o", out), "cannot be written")
