from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ldp_runtime import Deblurrer, __version__
from ldp_runtime.backends import openvino as openvino_backend
from ldp_runtime.cli import main
from ldp_runtime.commands import deblur as deblur_command
from ldp_runtime.errors import ImageError
from ldp_runtime.images import pair_files
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo, read_photo, write_photo
from ldp_runtime.images.quality import psnr, ssim
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

H, W = 37, 51
BACKEND = ["--backend", "onnxruntime", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def deblurrer(bundle: Path) -> Deblurrer:
    return Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)


def scene(dtype: Any = np.uint8, shift: int = 0, height: int = H, width: int = W) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.1, 0.9, (-(-height // 8), -(-width // 8), 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return np.round(np.roll(image, shift, axis=1) * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Paths of a left and a right view, 8-bit PNG."""
    for name, shift in (("left", 1), ("right", -1)):
        write_photo(tmp_path / f"{name}.png", Photo(scene(shift=shift)))
    return str(tmp_path / "left.png"), str(tmp_path / "right.png")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bundle: Path) -> Run:
    """Runs ``ldp`` in this process: exit code, stdout, stderr. Pair commands get the tiny bundle."""

    def call(*arguments: object) -> tuple[int, str, str]:
        argv = [str(argument) for argument in arguments]
        if argv and argv[0] in ("deblur", "blur-map") and "--bundle" not in argv and "--help" not in argv:
            argv += ["--bundle", str(bundle), *BACKEND]
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("ldp: error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


# --- deblur -------------------------------------------------------------------------------------------------


def test_deblur_writes_what_the_deblurrer_restores(
    run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer
) -> None:
    code, out, err = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert (code, err) == (0, "")
    expected = deblurrer(scene(shift=1), scene(shift=-1)).restored
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").pixels, expected)
    assert not np.array_equal(expected, scene(shift=1))
    assert files(tmp_path) == {"left.png", "right.png", "out.png"}
    for line in (
        "bundle   tiny (",
        "backend  onnxruntime in fp32, as asked",
        f"pair     {W} x {H} px, 8 bits, horizontal disparity",
        "wrote    ",
    ):
        assert any(printed.startswith(line) for printed in out.splitlines()), line
    for stage in ("read", "load", "prepare", "clip", "blur_logits", "deblur", "finish", "write", "total"):
        assert f"\n  {stage} " in out


def test_all_outputs_and_the_json_report(run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer) -> None:
    target = scene()
    write_photo(tmp_path / "target.png", Photo(target))
    names = {"restored": "out.png", "blur_map": "map.npy", "compare": "compare.jpg"}
    paths = {key: str(tmp_path / name) for key, name in names.items()}
    code, out, err = run(
        *("deblur", *pair, "-o", paths["restored"], "--blur-map", paths["blur_map"]),
        *("--compare", paths["compare"], "--target", tmp_path / "target.png", "--json"),
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    result = deblurrer(scene(shift=1), scene(shift=-1))

    np.testing.assert_array_equal(np.load(paths["blur_map"]), result.blur_map)
    assert report["outputs"] == paths
    assert report["version"] == __version__
    assert report["warnings"] == []
    assert (report["width"], report["height"], report["bits"]) == (W, H, 8)
    assert (report["backend"], report["precision"], report["axis"]) == ("onnxruntime", "fp32", "horizontal")
    assert {"read", "load", "deblur", "write"} <= report["seconds"].keys()
    center = (scene(shift=1).astype(float) + scene(shift=-1)) / 2
    for key, image in (("center_view", center), ("restored", result.restored)):
        values = report["quality"][key]
        assert values["psnr_db"] == pytest.approx(psnr(image, target, data_range=255), abs=1e-6)
        assert values["ssim"] == pytest.approx(ssim(image, target, data_range=255), abs=1e-6)
    height, width = read_photo(paths["compare"]).pixels.shape[:2]
    assert height > 2 * H and width > 2 * W  # four panels with the target


def test_tiles_are_asked_for_and_told(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    views = {name: scene(shift=shift, height=100, width=400) for name, shift in (("left", 1), ("right", -1))}
    for name, view in views.items():
        write_photo(tmp_path / f"{name}.png", Photo(view))
    pair, out = [tmp_path / "left.png", tmp_path / "right.png"], tmp_path / "out.png"
    told = {}
    for tile in ("auto", "256", "off"):
        code, text, err = run("deblur", *pair, "-o", out, "--tile", tile, "--json")
        assert (code, err) == (0, "")
        told[tile] = json.loads(text)["tiles"]
        restored = read_photo(out).pixels.astype(int)
        assert np.abs(restored - deblurrer(views["left"], views["right"]).restored).max() <= 1
    assert told == {"auto": 1, "256": 4, "off": 1}


def test_tiles_of_wrong_size(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    check_error(run("deblur", *pair, "-o", out, "--tile", "100"), "at least 256 px for this bundle, got 100")
    code, _, err = run("deblur", *pair, "-o", out, "--tile", "large")
    assert code == 2
    assert "expected auto, off or a number of px, got 'large'" in err
    assert not out.exists()


def test_quality_for_people(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    write_photo(tmp_path / "target.png", Photo(scene()))
    _, out, _ = run("deblur", *pair, "-o", tmp_path / "out.png", "--target", tmp_path / "target.png")
    for image in ("center view", "restored"):
        line = next(line for line in out.splitlines() if line.startswith(image))
        assert " dB, SSIM 0." in line


def test_a_strip_one_pixel_wide_has_no_ssim(run: Run, tmp_path: Path) -> None:
    for name in ("left", "right", "target"):
        write_photo(tmp_path / f"{name}.png", Photo(scene(shift=len(name), width=16)[:, :1]))
    views = (tmp_path / "left.png", tmp_path / "right.png")
    code, out, _ = run("deblur", *views, "-o", tmp_path / "o.png", "--target", views[0], "--json")
    assert code == 0
    assert json.loads(out)["quality"]["center_view"]["ssim"] is None
    assert read_photo(tmp_path / "o.png").pixels.shape == (H, 1, 3)


def test_quality_of_equal_images_is_json(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    code, out, _ = run("deblur", pair[0], pair[0], "-o", tmp_path / "o.png", "--target", pair[0], "--json")
    assert code == 0
    assert json.loads(out)["quality"]["center_view"] == {"psnr_db": None, "ssim": pytest.approx(1)}


def test_quiet_prints_nothing(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    assert run("deblur", *pair, "-o", tmp_path / "out.png", "-q") == (0, "", "")
    assert run("blur-map", *pair, "-o", tmp_path / "map.png", "-q") == (0, "", "")


def test_an_existing_output_is_replaced(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    assert run("deblur", *pair, "-o", tmp_path / "out.png")[0] == 0
    assert read_photo(tmp_path / "out.png").pixels.shape == (H, W, 3)


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0110] = "Camera"
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_and_metadata_are_kept(run: Run, tmp_path: Path, suffix: str, deblurrer: Deblurrer) -> None:
    icc = bytes(range(256))
    alpha = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    left, right = scene(np.uint16, 1), scene(np.uint16, -1)
    write_photo(tmp_path / f"l{suffix}", Photo(left, False, alpha, icc, exif_block(1), (300.0, 300.0)))
    write_photo(tmp_path / f"r{suffix}", Photo(right))
    out = tmp_path / f"out{suffix}"
    assert run("deblur", tmp_path / f"l{suffix}", tmp_path / f"r{suffix}", "-o", out)[0] == 0
    restored, original = read_photo(out), read_photo(tmp_path / f"l{suffix}")
    assert restored.pixels.dtype == np.uint16
    np.testing.assert_array_equal(restored.pixels, deblurrer(left, right).restored)
    assert len(np.unique(restored.pixels % 257)) > 200  # really 16 bits, not 8 bits scaled up
    np.testing.assert_array_equal(restored.alpha, alpha)
    assert (restored.icc_profile, restored.exif, restored.dpi) == (icc, original.exif, original.dpi)
    assert restored.exif is not None and b"Camera" in restored.exif


def test_a_grey_pair_stays_grey(run: Run, tmp_path: Path) -> None:
    for name, shift in (("l", 1), ("r", -1)):
        grey = scene(shift=shift)[..., 0]
        Image.fromarray(grey).save(tmp_path / f"{name}.jpg", quality=95, icc_profile=b"a profile of greys")
    compare = tmp_path / "compare.png"
    code, _, err = run(
        *("deblur", tmp_path / "l.jpg", tmp_path / "r.jpg", "-o", tmp_path / "out.jpg", "--compare", compare)
    )
    assert (code, err) == (0, "")
    assert Image.open(tmp_path / "out.jpg").mode == "L"
    assert Image.open(tmp_path / "out.jpg").info["icc_profile"] == b"a profile of greys"
    assert Image.open(compare).mode == "RGB"
    assert "icc_profile" not in Image.open(compare).info  # it is one of greys


def test_axis_and_swap(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    top, bottom = (scene(shift=shift).transpose(1, 0, 2) for shift in (1, -1))
    write_photo(tmp_path / "t.png", Photo(top))
    write_photo(tmp_path / "b.png", Photo(bottom))
    out = tmp_path / "out.png"
    results = {}
    for options in ((), ("--axis", "vertical"), ("--axis", "vertical", "--swap")):
        assert run("deblur", tmp_path / "t.png", tmp_path / "b.png", "-o", out, *options)[0] == 0
        results[options] = read_photo(out).pixels
    expected = {
        (): deblurrer(top, bottom),
        ("--axis", "vertical"): deblurrer(top, bottom, axis="vertical"),
        ("--axis", "vertical", "--swap"): deblurrer(bottom, top, axis="vertical"),
    }
    for options, result in expected.items():
        np.testing.assert_array_equal(results[options], result.restored)
    assert len({pixels.tobytes() for pixels in results.values()}) == 3


@pytest.mark.parametrize(("orientation", "turned"), [(3, False), (6, True), (8, True)])
def test_a_turned_camera_turns_the_disparity(
    run: Run, tmp_path: Path, orientation: int, turned: bool, deblurrer: Deblurrer
) -> None:
    for name, shift in (("l", 1), ("r", -1)):
        write_photo(tmp_path / f"{name}.png", Photo(scene(shift=shift), exif=exif_block(orientation)))
    left, right = (read_photo(tmp_path / f"{name}.png").pixels for name in "lr")
    assert left.shape == ((W, H, 3) if turned else (H, W, 3))
    code, out, _ = run("deblur", tmp_path / "l.png", tmp_path / "r.png", "-o", tmp_path / "o.png", "--json")
    assert code == 0
    axis = "vertical" if turned else "horizontal"
    assert json.loads(out)["axis"] == axis
    first, second = (left, right) if orientation == 6 else (right, left)  # 3 and 8 turn x around
    restored = read_photo(tmp_path / "o.png")
    np.testing.assert_array_equal(restored.pixels, deblurrer(first, second, axis=axis).restored)
    assert restored.orientation == 1
    assert restored.exif is not None and b"Camera" in restored.exif


# --- warnings -----------------------------------------------------------------------------------------------


def test_warns_when_both_files_hold_the_same_picture(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    code, out, err = run("deblur", pair[0], pair[0], "-o", tmp_path / "out.png", "--json")
    assert code == 0
    assert err.startswith("ldp: warning: ")
    assert "hold the same picture" in err
    assert json.loads(out)["warnings"] == [err.removeprefix("ldp: warning: ").rstrip("\n")]
    assert (tmp_path / "out.png").exists()


def test_warns_when_the_views_do_not_match(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    write_photo(tmp_path / "other.png", Photo(scene()[::-1, ::-1]))
    code, _, err = run("deblur", pair[0], tmp_path / "other.png", "-o", tmp_path / "out.png", "-q")
    assert code == 0
    assert err.startswith("ldp: warning: ")
    assert "do not look like two views of one photo" in err


# --- errors -------------------------------------------------------------------------------------------------


def test_views_of_unequal_size_or_depth(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    write_photo(tmp_path / "small.png", Photo(scene()[:, 1:]))
    write_photo(tmp_path / "deep.png", Photo(scene(np.uint16)))
    before = files(tmp_path)
    out = tmp_path / "out.png"
    check_error(run("deblur", pair[0], tmp_path / "small.png", "-o", out), f"50 x {H} px", f"{W} x {H} px", "crop")
    check_error(run("deblur", pair[0], tmp_path / "deep.png", "-o", out), "16 bits", "expected 8", "same depth")
    check_error(run("deblur", *pair, "-o", out, "--target", tmp_path / "small.png"), "small.png is 50 x")
    check_error(run("blur-map", pair[0], tmp_path / "small.png", "-o", out), "small.png is 50 x")
    assert files(tmp_path) == before


def test_views_of_unequal_orientation(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    write_photo(tmp_path / "turned.png", Photo(scene(), exif=exif_block(3)))
    result = run("deblur", pair[0], tmp_path / "turned.png", "-o", tmp_path / "out.png")
    check_error(result, "left.png has EXIF orientation 1", "turned.png has 3", "same orientation tag")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "damaged or truncated"),
        (b"no picture", "not a PNG, TIFF or JPEG"),
    ],
)
def test_unreadable_views(run: Run, pair: tuple[str, str], tmp_path: Path, content: bytes | None, words: str) -> None:
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    before = files(tmp_path)
    check_error(run("deblur", pair[0], bad, "-o", tmp_path / "out.png"), "bad.png", words)
    check_error(run("deblur", *pair, "-o", tmp_path / "out.png", "--target", bad), "bad.png", words)
    assert files(tmp_path) == before


def test_nothing_is_computed_for_an_output_that_cannot_be_written(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(Deblurrer, "from_bundle", compute)
    (tmp_path / "folder.png").mkdir()
    deep, deeper = str(tmp_path / "deep.png"), str(tmp_path / "deeper.png")
    write_photo(deep, Photo(scene(np.uint16, 1)))
    write_photo(deeper, Photo(scene(np.uint16, -1)))
    write_photo(tmp_path / "clear.png", Photo(scene(shift=1), alpha=scene()[..., 0]))
    os.link(pair[1], tmp_path / "hard.png")
    before = files(tmp_path)
    ok = tmp_path / "ok.png"
    for arguments, words in [
        ((*pair, "-o", tmp_path / "missing" / "out.png"), ["missing does not exist; make it first"]),
        ((*pair, "-o", tmp_path / "folder.png"), ["is a folder"]),
        ((*pair, "-o", tmp_path / "out.gif"), ["'.gif'"]),
        ((*pair, "-o", tmp_path / "out"), ["no suffix"]),
        ((*pair, "-o", pair[0]), ["left.png is an input", "choose another name"]),
        ((*pair, "-o", tmp_path / "hard.png"), ["hard.png is an input"]),
        ((*pair, "-o", ok, "--target", deep, "--compare", deep), ["deep.png is an input"]),
        ((*pair, "-o", ok, "--blur-map", ok), ["are one file"]),
        ((*pair, "-o", ok, "--blur-map", tmp_path / "map.txt"), ["'.txt'"]),
        ((*pair, "-o", ok, "--compare", tmp_path / "c.npy"), ["'.npy'"]),
        ((*pair, "-o", ok, "--compare", tmp_path / "missing" / "c.png"), ["missing does not exist"]),
        ((deep, deeper, "-o", tmp_path / "out.jpg"), ["JPEG holds 8 bits", ".png or .tif"]),
        ((tmp_path / "clear.png", pair[1], "-o", tmp_path / "out.jpg"), ["JPEG holds no alpha"]),
    ]:
        check_error(run("deblur", *arguments), *words)
    for arguments, words in [
        ((*pair, "-o", tmp_path / "missing" / "out.png"), ["missing does not exist"]),
        ((*pair, "-o", tmp_path / "map.txt"), ["'.txt'"]),
        ((*pair, "-o", pair[1]), ["right.png is an input"]),
    ]:
        check_error(run("blur-map", *arguments), *words)
    assert files(tmp_path) == before


def test_no_output_is_left_when_a_later_one_fails(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise ImageError("cannot draw")

    monkeypatch.setattr(deblur_command, "_encode_comparison", fail)
    before = files(tmp_path)
    outputs = ("-o", tmp_path / "out.png", "--blur-map", tmp_path / "m.png", "--compare", tmp_path / "c.png")
    check_error(run("deblur", *pair, *outputs), "cannot draw")
    assert files(tmp_path) == before


def test_bundle_and_backend_errors(run: Run, pair: tuple[str, str], tmp_path: Path, bundle: Path) -> None:
    out = tmp_path / "out.png"
    check_error(run("deblur", *pair, "-o", out, "--bundle", "no-such-bundle"), "no-such-bundle")
    damaged = make_tiny_bundle(tmp_path, "damaged")
    graph = damaged / "deblur.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    check_error(run("deblur", *pair, "-o", out, "--bundle", damaged), "deblur.onnx")
    check_error(run("deblur", *pair, "-o", out, "--bundle", bundle, "--threads", "0"), "at least 1 thread")
    check_error(
        run("deblur", *pair, "-o", out, "--bundle", bundle, "--backend", "onnxruntime", "--precision", "bf16"),
        "bf16",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["sharpen"],
        ["deblur", "l.png", "-o", "o.png"],
        ["deblur", "l.png", "r.png"],
        ["deblur", "l.png", "r.png", "-o", "o.png", "--backend", "abacus"],
        ["deblur", "l.png", "r.png", "-o", "o.png", "--precision", "int1"],
        ["deblur", "l.png", "r.png", "-o", "o.png", "--axis", "diagonal"],
    ],
)
def test_wrong_arguments(argv: list[str], run: Run) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "error: " in err
    assert "Traceback" not in err


def test_a_bug_asks_for_a_report(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pair_files, "read_photo", bug)
    code, out, err = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError: a bug" in err
    assert err.splitlines()[-1].startswith("ldp: this is a bug; please report")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_interrupted_or_out_of_memory(
    run: Run,
    pair: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    code: int,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Deblurrer, "__call__", stop)
    before = files(tmp_path)
    result = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert result[0] == code
    assert result[2].count("\n") == 1
    assert files(tmp_path) == before


# --- blur-map, info, help -----------------------------------------------------------------------------------


def test_blur_map(run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer) -> None:
    from ldp_runtime.images.visualize import colour_blur_map

    expected = deblurrer.blur_map(scene(shift=1), scene(shift=-1)).blur_map
    code, out, err = run("blur-map", *pair, "-o", tmp_path / "map.npy", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["outputs"] == {"blur_map": str(tmp_path / "map.npy")}
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), expected)
    assert run("blur-map", *pair, "-o", tmp_path / "map.png")[0] == 0
    np.testing.assert_array_equal(read_photo(tmp_path / "map.png").pixels, colour_blur_map(expected))


def test_blur_map_does_not_open_the_deblur_graph(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    _, out, _ = run("blur-map", *pair, "-o", tmp_path / "map.png", "--json")
    assert "deblur" not in json.loads(out)["seconds"]


def test_info(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bundle.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "bundle.json").write_text("{}")
    monkeypatch.setenv("LDP_BUNDLES", str(bundle.parent))
    code, out, err = run("info", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["versions"]["ldp"] == __version__
    assert report["versions"]["numpy"] == np.__version__
    assert report["backends"]["onnxruntime"]["available"] is True
    assert "fp32" in report["backends"]["onnxruntime"]["precisions"]
    for backend in report["backends"].values():
        assert backend["available"] or backend["reason"]
    assert report["bundles"]["tiny"]["path"] == str(bundle)
    assert "bundle.json" in report["bundles"]["damaged"]["error"]
    assert str(bundle.parent) in report["bundle_folders"]

    code, out, err = run("info")
    assert (code, err) == (0, "")
    for text in (__version__, report["cpu"]["name"], "  onnxruntime ", "  auto ", f"  tiny {'':16}{bundle}"):
        assert text in out


@pytest.mark.parametrize("command", [[], ["deblur"], ["blur-map"], ["batch"], ["info"]])
def test_help_has_examples_and_exit_codes(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "exit codes:" in out
    for exit_code in ("0 ", "1 ", "2 ", "130 "):
        assert f"\n  {exit_code}" in out
    if command:
        assert f"examples:\n  ldp {command[0]}" in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"ldp {__version__}\n", "")


# --- as a process -------------------------------------------------------------------------------------------


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ldp_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def test_a_process_restores_a_pair(pair: tuple[str, str], tmp_path: Path, bundle: Path, deblurrer: Deblurrer) -> None:
    done = process("deblur", *pair, "-o", tmp_path / "out.png", "--bundle", bundle, *BACKEND, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["bundle"] == "tiny"
    expected = deblurrer(scene(shift=1), scene(shift=-1)).restored
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").pixels, expected)


@pytest.mark.parametrize("kind", ["lzw", "deflate", "tags", "png"])
def test_a_process_says_one_line_about_a_damaged_file(tmp_path: Path, pair: tuple[str, str], kind: str) -> None:
    """OpenCV and tifffile write remarks of their own to stderr, which only a process shows."""
    deep = scene(np.uint16)
    if kind == "lzw":
        data = cv2.imencode(".tif", deep, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
        data = data[:8] + b"\xff" * 100 + data[108:]  # the first strip
    elif kind == "deflate":
        data = encode_photo("deep.tif", Photo(deep))
        data = data[:8] + b"\xff" * 100 + data[108:]
    elif kind == "tags":  # a type that does not exist, of the tag with the bits per sample
        data = encode_photo("deep.tif", Photo(deep))
        data = data.replace(struct.pack("<HH", 258, 3), struct.pack("<HH", 258, 99))
    else:
        data = encode_photo("deep.png", Photo(deep))[:-100]
    (tmp_path / "bad").write_bytes(data)
    done = process("deblur", tmp_path / "bad", pair[1], "-o", tmp_path / "out.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ldp: error: {tmp_path / 'bad'} is damaged or truncated")
    assert done.stderr.count("\n") == 1


def test_a_process_does_not_mind_a_damaged_tag(pair: tuple[str, str], tmp_path: Path, bundle: Path) -> None:
    """Pillow warns of it, as of much else."""
    for name, shift in (("l", 1), ("r", -1)):
        buffer = io.BytesIO()
        Image.fromarray(scene(shift=shift)).save(
            buffer, "TIFF", compression="tiff_lzw", description="something that gets lost"
        )
        data = bytearray(buffer.getvalue())
        struct.pack_into("<I", data, data.index(struct.pack("<HH", 270, 2)) + 4, 2**20)
        (tmp_path / f"{name}.tif").write_bytes(data)
    views = (tmp_path / "l.tif", tmp_path / "r.tif")
    done = process("deblur", *views, "-o", tmp_path / "out.tif", "--bundle", bundle, *BACKEND, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ldp_runtime", "info"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# --- backends that do not load


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "openvino", None)  # import openvino now fails
    openvino_backend._core.cache_clear()
    yield
    openvino_backend._core.cache_clear()


def test_a_backend_that_does_not_load_is_passed_over_with_a_warning(
    pair: tuple[str, str], tmp_path: Path, bundle: Path, no_openvino: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("deblur", "blur-map"):
        out = tmp_path / f"{command}.png"
        assert main([command, *pair, "-o", str(out), "--bundle", str(bundle), "-q"]) == 0
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.startswith("ldp: warning: openvino was passed over, onnxruntime ran: openvino needs the package ")
        assert err.count("\n") == 1
        assert out.is_file()


def test_without_any_backend_each_reason_is_told(
    pair: tuple[str, str],
    tmp_path: Path,
    bundle: Path,
    no_openvino: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))  # what an uninstall may leave
    assert main(["deblur", *pair, "-o", str(tmp_path / "out.png"), "--bundle", str(bundle)]) == 2
    printed, err = capsys.readouterr()
    assert printed == ""
    for words in (
        "ldp: error: no backend works here in precision auto: openvino: openvino needs the package openvino",
        "onnxruntime: onnxruntime needs the package onnxruntime, which does not load (module 'onnxruntime' has no ",
    ):
        assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
    assert main(["info"]) == 0
    assert capsys.readouterr().out.count("which does not load") >= 3  # each backend, and what auto would say


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_library_whose_binary_is_damaged_is_passed_over(
    pair: tuple[str, str], tmp_path: Path, bundle: Path, package: str
) -> None:
    """A shared library that is not one, in a folder that comes before the real package's."""
    broken = tmp_path / "site" / package
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(f"from {package} import native\n")
    (broken / f"native{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"\x7fELF, cut short")
    arguments = ["deblur", *pair, "-o", str(tmp_path / "out.png"), "--bundle", str(bundle), "-q"]
    path = os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ldp_runtime", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (0, "")
    if package == "openvino":
        assert "warning: openvino was passed over, onnxruntime ran: " in done.stderr
        assert "native" in done.stderr
    else:
        assert done.stderr == ""  # openvino runs, and nobody asked for the other
