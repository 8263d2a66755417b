"""The scripts of ``examples/`` run, with their defaults changed to small images."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ldp_runtime.images.photo import read_photo, write_pixels
from ldp_runtime.images.quality import center_view, psnr

ROOT = Path(__file__).parents[2]
LONGEST = 60


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder ``photos/crop`` with a crop of the sample, 160 x 128 px."""
    folder = tmp_path / "photos" / "crop"
    folder.mkdir(parents=True)
    for name in ("left", "right", "target"):
        pixels = read_photo(ROOT / "samples" / "motorcycle" / f"{name}.png").pixels
        write_pixels(folder / f"{name}.png", pixels[200:328, 300:460])
    return folder


def gain(pair: Path, restored: Path) -> float:
    """Gain in PSNR over the center view, dB."""
    left, right, target = (read_photo(pair / f"{name}.png").pixels for name in ("left", "right", "target"))
    images = (read_photo(restored).pixels, center_view(left, right))
    after, before = (psnr(image, target, data_range=255) for image in images)
    return after - before


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST


def test_one_pair(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sharp.png"
    load("one_pair").main([str(pair / "left.png"), str(pair / "right.png"), "-o", str(output)])
    assert gain(pair, output) > 1
    assert f"wrote {output}" in capsys.readouterr().out


def test_stream_of_pairs(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = pair.parent / "second"
    second.mkdir()
    for name in ("left", "right"):
        write_pixels(second / f"{name}.png", np.ascontiguousarray(read_photo(pair / f"{name}.png").pixels[:96]))
    load("stream_of_pairs").main([str(pair.parent), str(tmp_path / "out")])
    assert gain(pair, tmp_path / "out" / "crop.png") > 1
    assert read_photo(tmp_path / "out" / "second.png").pixels.shape == (96, 160, 3)
    assert "2 pairs in" in capsys.readouterr().out


def test_device_arrays(pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the GPU: NumPy stands in for the library, and a CPU backend for the engines."""
    example = load("device_arrays")
    monkeypatch.setattr(example, "find_library", lambda: (np.asarray, np.asarray))
    example.main(["--folder", str(pair), "--backend", "auto"])
    assert capsys.readouterr().out.startswith("(128, 160, 3) on cpu, mean ")


def test_device_arrays_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="skipped: expected an NVIDIA GPU with CuPy or torch, got none"):
        load("device_arrays").main([])


@pytest.mark.slow
def test_own_checkpoint(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("own_checkpoint").main(["-o", str(tmp_path / "bundle"), "--pair", str(pair)])
    scores = re.search(r"^PSNR (\S+) dB before, (\S+) dB after$", capsys.readouterr().out, re.MULTILINE)
    assert scores is not None
    assert float(scores[2]) - float(scores[1]) > 1
