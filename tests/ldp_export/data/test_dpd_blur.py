from pathlib import Path

import numpy as np
import pytest

from ldp_export.data import DataError, open_dataset
from ldp_export.data.dpd_blur import INDOOR_TEST
from ldp_runtime.errors import LDPError
from tests.ldp_export.data.miniatures import DPD_BLUR_TEST, check_promises, make_dpd_blur, read_rgb


def test_dpd_blur_pairs_by_order(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "train", ("0933", "0917", "1983"))
    dataset = open_dataset("dpd-blur", folder, "train")
    check_promises(dataset, 3)
    assert dataset.names() == ("1P0A0917", "1P0A0933", "1P0A1983")
    first = dataset[0]
    assert first.left.dtype == np.uint16 and first.peak == 65535
    assert np.array_equal(first.left, read_rgb(folder / "train_l/source/1P0A0917_L.png"))
    assert np.array_equal(first.right, read_rgb(folder / "train_r/source/1P0A0917_R.png"))
    assert first.target is not None
    assert np.array_equal(first.target, read_rgb(folder / "train_c/target/1P0A0916.png"))
    assert first.disparity is None and first.coc is None
    assert dataset.subsets() == {}


def test_dpd_blur_test_set_is_37_indoor_and_39_outdoor(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "test", DPD_BLUR_TEST, size=(2, 2))
    dataset = open_dataset("dpd-blur", folder, "test")
    subsets = dataset.subsets()
    assert {name: len(part) for name, part in subsets.items()} == {"indoor": 37, "outdoor": 39}
    assert subsets["indoor"] | subsets["outdoor"] == set(dataset.names())
    assert {"1P0A1046", "1P0A2521"} <= subsets["indoor"]
    assert {"1P0A0917", "1P0A2501"} <= subsets["outdoor"]
    # The places in the sorted test set, from 0, that the labels were published as.
    places = (8, 9, 10, 11, 12, 13, 16, 32, *range(39, 57), *range(59, 68), 74, 75)
    assert subsets["indoor"] == INDOOR_TEST == {dataset.names()[place] for place in places}
    (folder / "test_l/source/1P0A0917_L.png").unlink()
    (folder / "test_r/source/1P0A0917_R.png").unlink()
    (folder / "test_c/target/1P0A0916.png").unlink()
    part = open_dataset("dpd-blur", folder, "test").subsets()
    assert {name: len(names) for name, names in part.items()} == {"indoor": 37, "outdoor": 38}


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("train_r/source/1P0A0933_R.png", "train_r/source: 1P0A0933 missing"),
        ("train_l/source/1P0A0933_L.png", "train_l/source: 1P0A0933 missing"),
        ("train_c/target/1P0A1113.png", "2 images for 3 pairs"),
    ],
)
def test_dpd_blur_says_what_is_missing(tmp_path: Path, gone: str, message: str) -> None:
    folder = make_dpd_blur(tmp_path, "train", ("0917", "0933", "1114"))
    (folder / "train_c/target/1P0A1115.png").rename(folder / "train_c/target/1P0A1113.png")
    (folder / gone).unlink()
    with pytest.raises(DataError, match=message):
        open_dataset("dpd-blur", folder, "train")


def test_dpd_blur_notices_a_shifted_target(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "train", ("0917", "0933", "1114"))
    (folder / "train_c/target/1P0A0932.png").rename(folder / "train_c/target/1P0A1116.png")
    with pytest.raises(DataError, match=r"1P0A1115\.png is no target of 1P0A0933_L\.png, whose number is 182 away"):
        open_dataset("dpd-blur", folder, "train")


def test_the_folder_above_or_below_is_named(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "val", ("0917",))
    for wrong in (tmp_path, folder / "val_l"):
        with pytest.raises(DataError, match=f"give {folder}"):
            open_dataset("dpd-blur", wrong, "val")
    with pytest.raises(DataError, match=r"train_l/source/ is not in .* \(2 more\)"):
        open_dataset("dpd-blur", folder, "train")
    with pytest.raises(DataError, match="does not exist"):
        open_dataset("dpd-blur", tmp_path / "nowhere", "val")


def test_a_damaged_file_is_the_user_s_to_mend(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "val", ("0917",))
    dataset = open_dataset("dpd-blur", folder, "val")
    (folder / "val_r/source/1P0A0917_R.png").write_bytes(b"no image")
    with pytest.raises(LDPError, match="1P0A0917_R"):
        dataset[0]
    smaller = make_dpd_blur(tmp_path / "other", "val", ("0917",), size=(4, 4))
    (smaller / "val_r/source/1P0A0917_R.png").rename(folder / "val_r/source/1P0A0917_R.png")
    with pytest.raises(DataError, match=r"right view like the left view, \(8, 12, 3\) of uint16, got \(4, 4, 3\)"):
        dataset[0]
