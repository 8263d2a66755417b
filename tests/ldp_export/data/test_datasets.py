from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from ldp_export.cli import main
from ldp_export.data import DATASETS, DataError, PairDataset, PairSample, iterate, open_dataset
from ldp_export.data import pixel_dp as pixel_dp_module
from ldp_export.data.dpd_blur import INDOOR_TEST
from ldp_export.simulation.simulate import srgb_to_linear
from ldp_runtime.errors import LDPError
from tests.ldp_export.data.miniatures import (
    DPD_BLUR_TEST,
    make_ddd_syn,
    make_dpd_blur,
    make_dpd_disp,
    make_pixel_dp,
    make_rdpd,
    make_scenes,
)


def read_rgb(path: Path) -> np.ndarray:
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded[..., ::-1]


def check_promises(dataset: PairDataset, count: int) -> None:
    """What every data set promises."""
    assert len(dataset) == len(dataset.names()) == len(set(dataset.names())) == count
    for name, sample in zip(dataset.names(), iterate(dataset), strict=True):
        assert sample.name == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    for index in (-1, count):
        with pytest.raises(IndexError):
            dataset[index]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.names() == dataset.names()
    assert np.array_equal(again[count - 1].left, dataset[count - 1].left)


# --- DPD-blur -------------------------------------------------------------------------------------------------


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
    ("gone", "told"),
    [
        ("train_r/source/1P0A0933_R.png", "train_r/source: 1P0A0933 missing"),
        ("train_l/source/1P0A0933_L.png", "train_l/source: 1P0A0933 missing"),
        ("train_c/target/1P0A1113.png", "2 images for 3 pairs"),
    ],
)
def test_dpd_blur_says_what_is_missing(tmp_path: Path, gone: str, told: str) -> None:
    folder = make_dpd_blur(tmp_path, "train", ("0917", "0933", "1114"))
    (folder / "train_c/target/1P0A1115.png").rename(folder / "train_c/target/1P0A1113.png")
    (folder / gone).unlink()
    with pytest.raises(DataError, match=told):
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


# --- RDPD, DDD-syn --------------------------------------------------------------------------------------------


def test_rdpd(tmp_path: Path) -> None:
    folder = make_rdpd(tmp_path, "test")
    dataset = open_dataset("rdpd", folder, "test")
    check_promises(dataset, 10)
    assert dataset.names()[:2] == ("seq_001-0000000", "seq_001-0000001")
    sample = dataset[3]
    assert sample.target is not None
    assert np.array_equal(sample.left, read_rgb(folder / "test_l/source/seq_002/0000001.png"))
    assert np.array_equal(sample.right, read_rgb(folder / "test_r/source/seq_002/0000001.png"))
    assert np.array_equal(sample.target, read_rgb(folder / "test_c/target/seq_002/0000001.png"))
    (folder / "test_r/source/seq_003/0000000.png").unlink()
    with pytest.raises(DataError, match=r"test_r/source: seq_003/0000000\.png missing"):
        open_dataset("rdpd", folder, "test")


def test_ddd_syn(tmp_path: Path) -> None:
    folder = make_ddd_syn(tmp_path, {"training": (1, 2, 1001), "testing": (6001, 6002), "testing1": (6001,)})
    train, test = (open_dataset("ddd-syn", folder, split) for split in ("train", "test"))
    check_promises(train, 3)
    check_promises(test, 3)
    assert train.names() == ("0001", "0002", "1001")
    assert test.names() == ("6001", "6002", "6001_h")
    sample = test[2]
    assert sample.target is not None and sample.disparity is not None
    assert np.array_equal(sample.left, read_rgb(folder / "testing1/dp/6001_l.png"))
    assert np.array_equal(sample.right, read_rgb(folder / "testing1/dp/6001_r.png"))
    assert np.array_equal(sample.target, read_rgb(folder / "testing1/gt/6001_m.png"))
    assert sample.disparity[0, 0] == 6001 % 7 - 3
    assert sample.disparity[7, 11] == pytest.approx(6001 % 7 - 3 + 95 / 96, abs=1e-6)
    (folder / "testing/gt/6002_m.png").unlink()
    with pytest.raises(DataError, match=r"testing/gt/\*_m.png: 6002 missing"):
        open_dataset("ddd-syn", folder, "test")
    with pytest.raises(DataError, match="one of train, test, got 'val'"):
        open_dataset("ddd-syn", folder, "val")


# --- the test-only sets ---------------------------------------------------------------------------------------


def test_dpd_disp(tmp_path: Path) -> None:
    folder = make_dpd_disp(tmp_path)
    dataset = open_dataset("dpd-disp", folder, "test")
    check_promises(dataset, 2)
    sample = dataset[1]
    assert sample.name == "002"
    assert sample.target is None and sample.disparity is None
    assert sample.relative_disparity is not None
    assert sample.relative_disparity.dtype == np.float32
    assert 0 <= sample.relative_disparity.min() < sample.relative_disparity.max() <= 1
    assert np.array_equal(sample.left, read_rgb(folder / "002_L.jpg"))
    with pytest.raises(DataError, match=f"give {folder}"):
        open_dataset("dpd-disp", tmp_path, "test")
    (folder / "001_D.TIF").unlink()
    with pytest.raises(DataError, match=r"\*_D: 001 missing"):
        open_dataset("dpd-disp", folder, "test")


def test_pixel_dp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_dp_module, "FIELD", (8, 16))
    folder = make_pixel_dp(tmp_path)
    dataset = open_dataset("pixel-dp", folder, "test")
    check_promises(dataset, 1)
    sample = dataset[0]
    assert sample.left.shape == (8, 16, 3) and sample.left.dtype == np.uint16
    assert (sample.left == sample.left[..., :1]).all()
    raw = cv2.imread(str(folder / "001_left.png"), cv2.IMREAD_UNCHANGED)
    assert raw is not None
    light = np.clip(raw.astype(np.float64)[2:10, 2:18] - 1024, 0, None) / (2**14 - 1)
    decoded = [srgb_to_linear(view[..., 0].astype(np.float32) / 65535) for view in (sample.left, sample.right)]
    assert decoded[0] == pytest.approx(light, abs=1e-4)
    # Both raw views are the same; the sheet is half as bright in the right one, whose light is doubled.
    assert decoded[1] == pytest.approx(np.minimum(2 * light, 1), abs=1e-3)
    assert sample.target is not None and sample.relative_disparity is not None
    target = cv2.imread(str(folder / "gt_all_in_focus_im/001_gt.png"), cv2.IMREAD_UNCHANGED)
    assert target is not None
    restored = srgb_to_linear(sample.target[..., 0].astype(np.float32) / 65535)
    assert restored == pytest.approx(target[2:10, 2:18] / 65535, abs=1e-4)
    (folder / "calibration/white_sheet_left.png").unlink()
    with pytest.raises(DataError, match=r"calibration: calibration/white_sheet_left\.png missing"):
        open_dataset("pixel-dp", folder, "test")


# --- the command ----------------------------------------------------------------------------------------------


def test_the_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dpd_blur(tmp_path, "test", ("0917", "0933"))
    assert main(["data", "check", "dpd-blur", str(folder), "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "2 pairs  ok" in out and "2 pairs, not the 76 of the published split" in out
    assert "Abdullah-Abuolaim/defocus-deblurring-dual-pixel" in out
    assert main(["data", "check", "dpd-blur", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "train_l/source/ is not in" in captured.out and "expected layout" in captured.out
    assert captured.err.strip() == f"ldp-export: failed: dpd-blur in {folder} is not complete: train, val"
    assert main(["data", "check", "nothing", str(folder)]) == 2
    assert "one of simulated, dpd-blur" in capsys.readouterr().err
    assert main(["data", "check", "dpd-blur", str(folder), "--split", "dev"]) == 2


def test_every_kind_is_checked_and_opened_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {
        "simulated": make_scenes(tmp_path / "scenes"),
        "rdpd": make_rdpd(tmp_path, "test", sequences=2),
        "dpd-disp": make_dpd_disp(tmp_path),
        "pixel-dp": make_pixel_dp(tmp_path),
        "ddd-syn": make_ddd_syn(tmp_path, {"testing": (6001,), "testing1": (6001,)}),
        "dpd-blur": make_dpd_blur(tmp_path, "test", ("0917",)),
    }
    assert made.keys() == DATASETS.keys()
    for name, folder in made.items():
        split = "val" if name == "simulated" else "test"
        assert main(["data", "check", name, str(folder), "--split", split]) == 0, name
        assert len(open_dataset(name, folder, split)) >= 1
        empty = tmp_path / "empty" / name
        empty.mkdir(parents=True)
        assert main(["data", "check", name, str(empty), "--split", split]) == 1, name
        with pytest.raises(DataError, match="ldp-export data check"):
            open_dataset(name, empty, split)
    assert "2 sequences, not the 5" in capsys.readouterr().out


def test_samples_check_their_arrays() -> None:
    view = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(DataError, match="views"):
        PairSample("a", view.astype(np.float32), view)
    with pytest.raises(DataError, match="target like the left view"):
        PairSample("a", view, view, view.astype(np.uint16))
    with pytest.raises(DataError, match=r"disparity map \(4, 6\) of float32"):
        PairSample("a", view, view, disparity=np.zeros((4, 6)))  # type: ignore[arg-type]
    assert PairSample("a", view, view).peak == 255
