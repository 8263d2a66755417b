from pathlib import Path, PurePosixPath

import pytest

from ldp_runtime.batch.jobs import make_jobs
from ldp_runtime.batch.pairs import Pair, PairingError, match_files


def test_two_pairs_with_one_output_are_refused(tmp_path: Path) -> None:
    listing = match_files(tmp_path, map(PurePosixPath, ("a_L.png", "a_R.png", "left/a.png", "right/a.png")))
    with pytest.raises(PairingError, match=r"got \S+/a\.png for \S+left/a\.png and for \S+a_L\.png"):
        make_jobs(listing.pairs, tmp_path, image_format=None, map_format=None)


def test_a_blur_map_with_the_name_of_an_output_is_refused(tmp_path: Path) -> None:
    listing = match_files(tmp_path, map(PurePosixPath, ("a_L.png", "a_R.png", "a_blur_L.png", "a_blur_R.png")))
    assert len(make_jobs(listing.pairs, tmp_path, image_format=None, map_format="npy")) == 2
    with pytest.raises(PairingError, match=r"got \S+/a_blur\.png for"):
        make_jobs(listing.pairs, tmp_path, image_format=None, map_format="png")


def test_an_output_over_an_input_is_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a_L.png", tmp_path / "a_R.png", PurePosixPath("a_R"))
    with pytest.raises(PairingError, match="is an input"):
        make_jobs([pair], tmp_path, image_format=None, map_format=None)
