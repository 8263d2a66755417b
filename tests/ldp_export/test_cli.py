import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ldp_export.cli import main
from ldp_export.commands import onnx, sample
from ldp_export.network import CONFIGS
from ldp_export.simulation import samples
from ldp_export.simulation.maps import fill_depth_holes, read_map
from ldp_export.simulation.optics import SimulationError, ThinLens, coc_from_disparity
from ldp_export.simulation.simulate import SimulatedPair, simulate_pair
from ldp_runtime.images.photo import read_photo, write_pixels
from tests.processes import output

H, W = 24, 40
LENS = ["--focal-length", "50", "--f-number", "1.8", "--focus-distance", "1500", "--pixel-pitch", "20"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_pixels(tmp_path / "sharp.png", rng.integers(0, 256, (H, W, 3)).astype(np.uint8))
    return tmp_path / "sharp.png"


@pytest.fixture
def disparity(tmp_path: Path) -> Path:
    path = tmp_path / "disparity.npy"
    np.save(path, np.linspace(10, 50, H * W, dtype=np.float32).reshape(H, W))
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert "\n" not in error, error
    assert error.startswith("ldp-export: error: ")
    return error


@pytest.mark.parametrize("command", ["onnx", "evaluate", "calibrate", "simulate", "sample"])
def test_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"examples:\n  ldp-export {command} " in text
    assert "exit codes:" in text


def test_help_loads_nothing_heavy() -> None:
    output(
        "import sys; from ldp_export.cli import main; code = main(['simulate', '--help']); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'onnx', 'scipy', 'cv2', 'onnxruntime')))"
    )
    version = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('ldp_export', run_name='__main__')"
    assert output(version).startswith("ldp-export ")


def test_choices_are_those_of_the_code() -> None:
    assert tuple(CONFIGS) == onnx.CONFIG_NAMES
    assert samples.MOTORCYCLE.focus == sample.FOCUS_NAMES


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nonsense"], ["onnx"], ["onnx", "a", "--config", "nano", "-o", "b"], ["calibrate", "x"]):
        assert main(arguments) == 2
        assert "usage: ldp-export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["onnx", "a", "-o", "b"], "--seed", "-1"),
        (["onnx", "a", "-o", "b"], "--window", "0"),
        (["calibrate", "a", "--simulate"], "--seed", str(2**63)),
        (["simulate", "a", "-o", "b", "--disparity", "c"], "--seed", "-1"),
        (["data", "render", "a", "-o", "b"], "--seed", "-1"),
        (["quantize", "a"], "--seed", "-1"),
        (["quantize", "a"], "--threads", "0"),
        (["quantize", "a"], "--max-loss", "-1"),
    ],
)
def test_numbers_out_of_range_are_named_before_any_work(
    command: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, option, value]) == 2
    assert f"argument {option}: expected a " in capsys.readouterr().err


def test_onnx_options_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "bundle")
    assert main(["onnx", "--config", "nano", "-o", out]) == 2
    assert "ViT-B-32-quickgelu" in one_line(capsys)
    assert main(["onnx", str(tmp_path), "--clip", "ViT-B-32", "-o", out]) == 2
    assert "expected --clip with --config" in one_line(capsys)
    assert main(["onnx", str(tmp_path / "nowhere"), "-o", out]) == 2
    assert "does not exist" in one_line(capsys)
    assert main(["onnx", "--config", "nano", "--clip", "no-such-clip", "-o", out]) == 2
    assert "unknown CLIP architecture" in one_line(capsys)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "bundle"):
        assert main(["onnx", "--config", "nano", "--clip", "ViT-B-32", "-o", str(folder)]) == 2
        assert "choose another" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 2
    assert "bundle.json" in one_line(capsys)


def test_bugs_and_interrupts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for raised, code, says in ((KeyboardInterrupt, 130, "interrupted"), (ZeroDivisionError, 1, "this is a bug")):

        def fail(*arguments: object, raised: type[BaseException] = raised) -> None:
            raise raised

        monkeypatch.setattr(samples, "focus_setting", fail)
        assert main(["sample", "-o", str(tmp_path / "out")]) == code
        assert says in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_simulate_writes_what_the_simulator_gives(image: Path, disparity: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "pair"
    noise = ["--noise", "1e-4,1e-3", "--seed", "5"]
    arguments = ["simulate", str(image), "-o", str(out), "--disparity", str(disparity), "--max-coc", "3"]
    assert main([*arguments, "--focus-percentile", "25", "--psf-order", "4", *noise]) == 0
    record = json.loads((out / "simulate.json").read_text(encoding="utf-8"))
    assert record["psf"] == {"order": 4.0, "softness": 0.12, "crosstalk": 0.215}
    assert record["noise"] == {"shot": 1e-4, "read": 1e-3}
    assert (record["seed"], record["bits"], record["max_coc"], record["image"]) == (5, 8, 3.0, "sharp.png")
    assert record["focus_disparity"] == pytest.approx(20, abs=0.1)
    assert str(tmp_path) not in (out / "simulate.json").read_text(encoding="utf-8")

    coc = np.load(out / "coc.npy")
    assert coc == pytest.approx(coc_from_disparity(np.load(disparity), record["focus_disparity"], 3.0))
    from ldp_export.simulation.optics import HalfAperturePSF
    from ldp_export.simulation.simulate import SensorNoise

    pair = simulate_pair(
        read_photo(image).pixels, coc, psf=HalfAperturePSF(order=4), noise=SensorNoise(1e-4, 1e-3), seed=5
    )
    for name in ("left", "right", "target"):
        assert np.array_equal(read_photo(out / f"{name}.png").pixels, getattr(pair, name)), name
    assert sorted(p.name for p in out.iterdir()) == ["coc.npy", "left.png", "right.png", "simulate.json", "target.png"]
    assert main([*arguments, "--focus-disparity", "30"]) == 0  # over its own output
    assert json.loads((out / "simulate.json").read_text(encoding="utf-8"))["focus_disparity"] == 30


def test_simulate_from_depth_and_in_16_bit(image: Path, tmp_path: Path) -> None:
    depth = np.linspace(800, 6000, H * W, dtype=np.float32).reshape(H, W)
    depth[3, 3], depth[5, 5] = 0, np.inf
    tifffile.imwrite(tmp_path / "depth.tif", depth)
    out = tmp_path / "pair"
    arguments = ["simulate", str(image), "-o", str(out), "--depth", str(tmp_path / "depth.tif")]
    assert main([*arguments, *LENS, "--bits", "16"]) == 0
    assert read_photo(out / "left.png").pixels.dtype == np.uint16
    coc = np.load(out / "coc.npy")
    lens = ThinLens(50, 1.8, 1500, 20)
    assert json.loads((out / "simulate.json").read_text(encoding="utf-8"))["lens"] == {
        "focal_length": 50, "f_number": 1.8, "focus_distance": 1500, "pixel_pitch": 20,
    }  # fmt: skip
    good = np.ones_like(coc, bool)
    good[3, 3] = False
    expected = lens.coc_radius(np.where(good, depth, 1500))
    assert coc[good] == pytest.approx(expected[good], abs=1e-4)
    assert coc[3, 3] == pytest.approx(coc[3, 4], abs=1e-3), "the hole takes what lies farther away beside it"


def test_simulate_keeps_the_depth_of_the_image(disparity: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_pixels(tmp_path / "deep.tif", rng.integers(0, 65536, (H, W, 3)).astype(np.uint16))
    out = tmp_path / "pair"
    assert main(["simulate", str(tmp_path / "deep.tif"), "-o", str(out), "--disparity", str(disparity)]) == 0
    assert read_photo(out / "left.png").pixels.dtype == np.uint16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--depth", "MAP"], "add --focal-length, --f-number, --focus-distance, --pixel-pitch"),
        (["--depth", "MAP", *LENS, "--max-coc", "3"], "--max-coc with --disparity alone"),
        (["--depth", "MAP", *LENS[:-1], "0"], "pixel_pitch must be a positive number"),
        (["--disparity", "MAP", "--f-number", "2"], "--f-number with --depth alone"),
        (["--disparity", "MAP", "--max-coc", "0"], "--max-coc above zero"),
        (["--disparity", "MAP", "--max-coc", "500"], "at most 32 px"),
        (["--disparity", "MAP", "--focus-percentile", "101"], "from 0 to 100"),
        (["--disparity", "MAP", "--focus-disparity", "nan"], "NaN"),
        (["--disparity", "MAP", "--noise", "1"], "SHOT,READ"),
        (["--disparity", "MAP", "--noise", "1e-4,-1"], "from 0 to below 1"),
        (["--disparity", "MAP", "--psf-order", "0"], "--psf-order"),
        (["--disparity", "MAP", "--psf-softness", "-1"], "--psf-softness"),
        (["--disparity", "MAP", "--psf-crosstalk", "0.5"], "--psf-crosstalk"),
        (["--disparity", "nowhere.npy"], "does not exist"),
        (["--disparity", "map.exr"], "expected a map that ends in"),
    ],
)
def test_simulate_errors_leave_nothing(
    image: Path, disparity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    arguments = [str(disparity) if option == "MAP" else option for option in options]
    assert main(["simulate", str(image), "-o", str(tmp_path / "pair"), *arguments]) == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "pair").exists()


def test_simulate_with_images_that_are_none(
    disparity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "pair"), "--disparity", str(disparity)]
    assert main(["simulate", str(tmp_path / "nowhere.png"), *out]) == 2
    assert "does not exist" in one_line(capsys)
    write_pixels(tmp_path / "small.png", np.zeros((4, 4, 3), np.uint8))
    assert main(["simulate", str(tmp_path / "small.png"), *out]) == 2
    assert "expected the image's size, 4 x 4 px" in one_line(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("")
    assert main(["simulate", str(tmp_path / "small.png"), "-o", str(tmp_path / "full"), *out[2:]]) == 2
    assert "simulate.json" in one_line(capsys)


def test_maps_of_every_format(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 60000, (5, 7)).astype(np.float32)
    np.save(tmp_path / "map.npy", values.astype(np.float64))
    tifffile.imwrite(tmp_path / "map.tif", values)
    write_pixels(tmp_path / "map.png", values.astype(np.uint16))
    for name, order, scale in (("little.pfm", "<f4", -1.0), ("big.pfm", ">f4", 0.0039)):
        header = f"Pf\n7 5\n{scale}\n".encode()
        (tmp_path / name).write_bytes(header + values[::-1].astype(order).tobytes())
    (tmp_path / "comment.pfm").write_bytes(b"Pf\n# made by hand\n7 5\n-1\n" + values[::-1].astype("<f4").tobytes())
    for path in tmp_path.iterdir():
        got = read_map(path, (5, 7))
        assert got.dtype == np.float32, path.name
        assert np.array_equal(got, values), path.name
        with pytest.raises(SimulationError, match="expected the image's size"):
            read_map(path, (7, 5))


def test_damaged_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", np.zeros((5, 7, 3)))
    np.save(tmp_path / "text.npy", np.full((5, 7), "a"))
    (tmp_path / "short.pfm").write_bytes(b"Pf\n7 5\n-1.0\n" + bytes(10))
    (tmp_path / "colour.pfm").write_bytes(b"PF\n7 5\n-1.0\n" + bytes(420))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "nonsense.tif").write_bytes(b"II*\0nonsense")
    write_pixels(tmp_path / "colour.png", np.zeros((5, 7, 3), np.uint8))
    for path in tmp_path.iterdir():
        with pytest.raises(SimulationError, match=path.name.replace(".", r"\.")) as caught:
            read_map(path, (5, 7))
        assert "\n" not in str(caught.value)


def test_depth_holes_are_filled_from_behind() -> None:
    depth = np.array([[100.0, np.nan, 300.0], [0.0, 200.0, 400.0], [-5.0, -5.0, np.inf]], np.float32)
    filled = fill_depth_holes(depth)
    assert filled[0].tolist() == pytest.approx([100, 300, 300])
    assert filled[1].tolist() == pytest.approx([200, 200, 400])
    assert filled[2, 2] == np.inf
    assert (filled[2] > 1e30).all()
    whole = np.array([[1.0, 2.0]], np.float32)
    assert fill_depth_holes(whole) is whole
    with pytest.raises(SimulationError, match="no valid"):
        fill_depth_holes(np.zeros((2, 2), np.float32))


def test_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    made = {
        focus: SimulatedPair(
            *(rng.integers(0, 256, (H, W, 3)).astype(np.uint8) for _ in range(3)), rng.random((H, W), np.float32)
        )
        for focus in sample.FOCUS_NAMES
    }
    monkeypatch.setattr(samples, "focus_setting", made.__getitem__)
    for focus, options in (("near", []), ("far", ["--focus", "far"])):
        out = tmp_path / focus
        assert main(["sample", "-o", str(out), *options]) == 0
        for name in ("left", "right", "target"):
            assert np.array_equal(read_photo(out / f"{name}.png").pixels, getattr(made[focus], name))
        assert np.array_equal(np.load(out / "coc.npy"), made[focus].coc)
        record = json.loads((out / "sample.json").read_text(encoding="utf-8"))
        assert record["focus"] == focus
        assert record["parameters"]["percentiles"] == [80.0, 30.0]
    assert f"{W} x {H} px, far focus" in capsys.readouterr().out
