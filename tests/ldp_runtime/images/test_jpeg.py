from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.jpeg import MAX_SCANS
from ldp_runtime.images.photo import read_photo, write_photo
from tests.ldp_runtime.images.pictures import ICC, exif_block, gradient, pillow, read, refusal


@pytest.mark.parametrize("grey", [False, True])
def test_round_trip(tmp_path: Path, grey: bool) -> None:
    pixels = gradient(40, 60)
    if grey:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    opaque = np.full((40, 60), 255, np.uint8)
    photo = Photo(pixels, grey, opaque, icc_profile=ICC, exif=exif_block(), dpi=(300.0, 300.0))
    write_photo(tmp_path / "a.JPG", photo)
    again = read_photo(tmp_path / "a.JPG")
    assert np.abs(again.pixels.astype(int) - pixels).max() <= 3
    assert (again.grey, again.icc_profile, again.exif, again.dpi) == (grey, ICC, photo.exif, (300, 300))
    assert again.alpha is None
    assert Image.open(tmp_path / "a.JPG").mode == ("L" if grey else "RGB")


def test_the_main_one_of_several_pictures_is_read(tmp_path: Path) -> None:
    second = Image.fromarray(gradient(24, 40)[::-1])
    photo = read(tmp_path, pillow(gradient(24, 40), "MPO", save_all=True, append_images=[second]))
    assert np.abs(photo.pixels.astype(int) - gradient(24, 40)).max() < 16


def test_many_scans_are_refused(tmp_path: Path) -> None:
    data = pillow(gradient(24, 40), "JPEG", progressive=True)
    read(tmp_path, data)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * MAX_SCANS + b"\xff\xd9"
    assert f"at most {MAX_SCANS} are read" in refusal(tmp_path, bomb)
