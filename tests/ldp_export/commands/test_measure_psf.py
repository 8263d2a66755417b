import json
from pathlib import Path

import numpy as np
import pytest

from ldp_export.cli import main
from ldp_runtime.images.photo import read_photo, write_pixels
from tests.ldp_export.evaluation.test_measure_psf import simulated


def write_sample(folder: Path, *, target: bool = True) -> None:
    folder.mkdir(parents=True)
    sample = simulated(4.0, 0.45)
    write_pixels(folder / "left.png", sample.left)
    write_pixels(folder / "right.png", sample.right)
    if target:
        assert sample.target is not None
        write_pixels(folder / "target.png", sample.target)


def test_it_prints_what_the_simulator_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sample(tmp_path / "photos/a")
    write_sample(tmp_path / "photos/b", target=False)
    out = tmp_path / "psf"
    assert main(["measure-psf", str(tmp_path / "photos"), "--max-radius", "7", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert "b has no target and is left out" in printed.err
    record = json.loads((out / "measure-psf.json").read_text(encoding="utf-8"))
    separation = record["separation"]["median"]
    assert separation == pytest.approx(0.45, abs=0.03)
    assert f"--separation {separation:.2f}" in printed.out
    assert [block["pair"] for block in record["blocks"]] == ["a"]
    with np.load(out / "psf.npz") as kernels:
        assert kernels["left"].shape == kernels["right"].shape == (1, 17, 17)
    assert read_photo(out / "psf.png").pixels.ndim == 3

    image, disparity = tmp_path / "photos/a/target.png", tmp_path / "disparity.npy"
    np.save(disparity, np.linspace(1, 9, 150 * 150, dtype=np.float32).reshape(150, 150))
    given = ["simulate", str(image), "--disparity", str(disparity), "--max-coc", "2", "-o", str(tmp_path / "made")]
    assert main([*given, "--separation", f"{separation:.2f}"]) == 0
    crosstalk = json.loads((tmp_path / "made/simulate.json").read_text(encoding="utf-8"))["psf"]["crosstalk"]
    assert crosstalk == pytest.approx(0.215, abs=0.02)
    assert main([*given, "--separation", "0.9"]) == 2
    assert "expected a separation of the views from 0 to" in capsys.readouterr().err
    assert main([*given, "--separation", "0.4", "--psf-crosstalk", "0.1"]) == 2


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sample(tmp_path / "photos/a", target=False)
    photos = str(tmp_path / "photos")
    for arguments, code, words in (
        ([photos], 2, "expected pairs with targets"),
        ([photos, "--max-radius", "50"], 2, "expected --max-radius above 2 and at most 20 px, got 50"),
        ([str(tmp_path / "none")], 2, "expected a folder with pairs or a .csv"),
        ([photos, "-o", photos], 2, "choose another"),
    ):
        assert main(["measure-psf", *arguments]) == code
        assert words in capsys.readouterr().err
    write_pixels(tmp_path / "photos/a/target.png", np.full((150, 150, 3), 99, np.uint8))
    assert main(["measure-psf", photos, "-o", str(tmp_path / "psf")]) == 1
    assert "no block of" in capsys.readouterr().err
    assert not (tmp_path / "psf").exists()
