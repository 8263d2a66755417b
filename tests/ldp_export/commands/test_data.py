from pathlib import Path

import pytest

from ldp_export.cli import main
from ldp_export.data import DATASETS, DataError, open_dataset
from tests.ldp_export.data.miniatures import (
    make_ddd_syn,
    make_dpd_blur,
    make_dpd_disp,
    make_pixel_dp,
    make_rdpd,
    make_scenes,
    noise,
    write_image,
)


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
    assert "one of simulated, pairs, dpd-blur" in capsys.readouterr().err
    assert main(["data", "check", "dpd-blur", str(folder), "--split", "dev"]) == 2


def test_every_kind_is_checked_and_opened_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {
        "simulated": make_scenes(tmp_path / "scenes"),
        "pairs": tmp_path / "pairs",
        "rdpd": make_rdpd(tmp_path, "test", sequences=2),
        "dpd-disp": make_dpd_disp(tmp_path),
        "pixel-dp": make_pixel_dp(tmp_path),
        "ddd-syn": make_ddd_syn(tmp_path, {"testing": (6001,), "testing1": (6001,)}),
        "dpd-blur": make_dpd_blur(tmp_path, "test", ("0917",)),
    }
    assert made.keys() == DATASETS.keys()
    for name in ("left", "right"):
        write_image(made["pairs"] / f"{name}.png", noise((8, 8, 3), 0))
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
