from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldp_runtime import Deblurrer, __version__
from ldp_runtime.commands import deblur as deblur_command
from ldp_runtime.errors import ImageError
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import read_photo, write_photo
from ldp_runtime.images.quality import psnr, ssim
from tests.ldp_runtime.conftest import H, Run, W, check_error, files, scene
from tests.ldp_runtime.images.pictures import exif_block
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


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
    assert restored.exif is not None and b"Maker" in restored.exif


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
    assert restored.exif is not None and b"Maker" in restored.exif


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


def test_without_a_blur_map_there_is_none_to_write(
    run: Run, pair: tuple[str, str], tmp_path: Path, bundle_without_clip: Path
) -> None:
    before = files(tmp_path)
    options = ("-o", tmp_path / "out.png", "--bundle", bundle_without_clip)
    refused = run("deblur", *pair, *options, "--blur-map", tmp_path / "map.png")
    check_error(refused, "bundle 'mapless' has no blur map: its network reads none")
    assert files(tmp_path) == before
