import json
import os
import re
import threading
from pathlib import Path
from typing import Any

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
from tests.ldp_runtime.images.raw_files import small_dng
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


def save(path: Path, pixels: np.ndarray, **fields: Any) -> Path:
    write_photo(path, Photo(pixels, **fields))
    return path


def test_restores_as_the_deblurrer_does_in_place_of_an_old_file(
    run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer
) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    code, out, err = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert (code, err) == (0, "")
    expected = deblurrer(scene(shift=1), scene(shift=-1)).restored
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").pixels, expected)
    assert not np.array_equal(expected, scene(shift=1))
    assert files(tmp_path) == {"left.png", "right.png", "out.png"}
    lines = ("bundle   tiny (", "backend  onnxruntime in fp32, as asked", f"pair     {W} x {H} px, 8 bits, horizontal")
    for line in (*lines, "wrote    "):
        assert f"\n{line}" in f"\n{out}"
    for stage in ("read", "load", "prepare", "clip", "blur_logits", "deblur", "finish", "write", "total"):
        assert f"\n  {stage} " in out
    assert run("deblur", *pair, "-o", tmp_path / "out.png", "-q") == (0, "", "")


def test_the_graphs_are_opened_while_the_pair_is_read(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    open_graphs, read = Deblurrer.open, deblur_command.read_pair

    def note(deblurrer: Deblurrer, **options: Any) -> None:
        open_graphs(deblurrer, **options)
        opened.set()

    def wait(*arguments: Any) -> Any:
        assert opened.wait(60)
        return read(*arguments)

    monkeypatch.setattr(Deblurrer, "open", note)
    monkeypatch.setattr(deblur_command, "read_pair", wait)
    assert run("deblur", *pair, "-o", tmp_path / "out.png", "-q") == (0, "", "")


def test_what_is_wrong_with_the_pair_comes_before_what_is_wrong_with_the_bundle(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    outcome = run("deblur", missing, missing, "-o", tmp_path / "out.png", "--bundle", tmp_path / "none")
    check_error(outcome, f"{missing} does not exist")


def test_all_outputs_and_the_json_report(run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer) -> None:
    target = scene()
    save(tmp_path / "target.png", target)
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


def test_tiles_are_reported(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    views = [scene(shift=shift, height=100, width=400) for shift in (1, -1)]
    pair, out = [save(tmp_path / f"{i}.png", view) for i, view in enumerate(views)], tmp_path / "out.png"
    tiles = {}
    for tile in ("auto", "256", "off"):
        code, text, err = run("deblur", *pair, "-o", out, "--tile", tile, "--json")
        assert (code, err) == (0, "")
        tiles[tile] = json.loads(text)["tiles"]
        assert np.abs(read_photo(out).pixels.astype(int) - deblurrer(*views).restored).max() <= 1
    assert tiles == {"auto": 1, "256": 4, "off": 1}


def test_tiles_of_wrong_size(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    check_error(run("deblur", *pair, "-o", out, "--tile", "100"), "at least 256 px for this bundle, got 100")
    code, _, err = run("deblur", *pair, "-o", out, "--tile", "large")
    assert code == 2
    assert "expected auto, off or a number of px, got 'large'" in err
    assert not out.exists()


def test_quality(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    _, printed, _ = run("deblur", *pair, "-o", out, "--target", save(tmp_path / "target.png", scene()))
    for image in ("center view", "restored"):
        assert re.search(rf"^{image} +PSNR \d+\.\d\d dB, SSIM 0\.\d{{4}}$", printed, re.MULTILINE)
    _, printed, _ = run("deblur", pair[0], pair[0], "-o", out, "--target", pair[0], "--json", "--check", "warn")
    assert json.loads(printed)["quality"]["center_view"] == {"psnr_db": None, "ssim": pytest.approx(1)}  # equal
    strips = [save(tmp_path / f"{i}.png", scene(shift=i, width=16)[:, :1]) for i in range(2)]
    _, printed, _ = run("deblur", *strips, "-o", out, "--target", strips[0], "--json")
    assert json.loads(printed)["quality"]["center_view"]["ssim"] is None  # too narrow
    assert read_photo(out).pixels.shape == (H, 1, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_and_metadata_are_kept(run: Run, tmp_path: Path, suffix: str, deblurrer: Deblurrer) -> None:
    icc = bytes(range(256))
    alpha = np.arange(H * W, dtype=np.uint16).reshape(H, W)
    left, right = scene(np.uint16, 1), scene(np.uint16, -1)
    fields = {"alpha": alpha, "icc_profile": icc, "exif": exif_block(), "dpi": (300.0, 300.0)}
    views = save(tmp_path / f"l{suffix}", left, **fields), save(tmp_path / f"r{suffix}", right)
    assert run("deblur", *views, "-o", tmp_path / f"out{suffix}")[0] == 0
    restored, original = read_photo(tmp_path / f"out{suffix}"), read_photo(views[0])
    assert restored.pixels.dtype == np.uint16
    np.testing.assert_array_equal(restored.pixels, deblurrer(left, right).restored)
    assert len(np.unique(restored.pixels % 257)) > 200  # really 16 bits, not 8 bits scaled up
    np.testing.assert_array_equal(restored.alpha, alpha)
    assert (restored.icc_profile, restored.exif, restored.dpi) == (icc, original.exif, original.dpi)
    assert restored.exif is not None and b"Maker" in restored.exif


def test_a_grey_pair_stays_grey(run: Run, tmp_path: Path) -> None:
    profile = b"a profile of greys"
    views = [save(tmp_path / f"{i}.jpg", scene(shift=i), grey=True, icc_profile=profile) for i in range(2)]
    out, compare = tmp_path / "out.jpg", tmp_path / "compare.png"
    code, _, err = run("deblur", *views, "-o", out, "--compare", compare)
    assert (code, err) == (0, "")
    assert (Image.open(out).mode, Image.open(out).info["icc_profile"]) == ("L", profile)
    assert Image.open(compare).mode == "RGB"
    assert "icc_profile" not in Image.open(compare).info  # it does not fit colours


def test_axis_and_swap(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    top, bottom = (scene(shift=shift).transpose(1, 0, 2) for shift in (1, -1))
    views, out = (save(tmp_path / "t.png", top), save(tmp_path / "b.png", bottom)), tmp_path / "out.png"
    seen = set()
    for options, expected in {
        (): deblurrer(top, bottom),
        ("--axis", "vertical"): deblurrer(top, bottom, axis="vertical"),
        ("--axis", "vertical", "--swap"): deblurrer(bottom, top, axis="vertical"),
    }.items():
        assert run("deblur", *views, "-o", out, *options)[0] == 0
        np.testing.assert_array_equal(read_photo(out).pixels, expected.restored)
        seen.add(expected.restored.tobytes())
    assert len(seen) == 3


@pytest.mark.parametrize(("orientation", "turned"), [(3, False), (6, True), (8, True)])
def test_a_turned_camera_turns_the_disparity(
    run: Run, tmp_path: Path, orientation: int, turned: bool, deblurrer: Deblurrer
) -> None:
    views = [save(tmp_path / f"{i}.png", scene(shift=1 - 2 * i), exif=exif_block(orientation)) for i in range(2)]
    left, right = (read_photo(view).pixels for view in views)
    assert left.shape == ((W, H, 3) if turned else (H, W, 3))
    code, out, _ = run("deblur", *views, "-o", tmp_path / "o.png", "--json")
    assert code == 0
    axis = "vertical" if turned else "horizontal"
    assert json.loads(out)["axis"] == axis
    first, second = (left, right) if orientation == 6 else (right, left)  # 3 and 8 turn x around
    restored = read_photo(tmp_path / "o.png")
    np.testing.assert_array_equal(restored.pixels, deblurrer(first, second, axis=axis).restored)
    assert restored.orientation == 1
    assert restored.exif is not None and b"Maker" in restored.exif


def test_warnings(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    other = save(tmp_path / "other.png", scene()[::-1, ::-1])
    for right, words in ((pair[0], "hold the same picture"), (other, "do not look like two views of one photo")):
        code, out, err = run("deblur", pair[0], right, "-o", tmp_path / "out.png", "--json")
        assert (code, out) == (2, "") and words in err
        assert not (tmp_path / "out.png").exists()
        code, out, err = run("deblur", pair[0], right, "-o", tmp_path / "out.png", "--json", "--check", "warn")
        (tmp_path / "out.png").unlink()
        assert code == 0
        assert err.startswith("ldp: warning: ") and words in err
        assert json.loads(out)["warnings"] == [err.removeprefix("ldp: warning: ").rstrip("\n")]


def test_views_that_are_no_pair(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    small = save(tmp_path / "small.png", scene()[:, 1:])
    deep = save(tmp_path / "deep.png", scene(np.uint16))
    turned = save(tmp_path / "turned.png", scene(), exif=exif_block(3))
    for name, content in (("empty", b""), ("damaged", b"\x89PNG\r\n\x1a\n" + bytes(30)), ("text", b"no picture")):
        (tmp_path / name).write_bytes(content)
    before = files(tmp_path)
    for right, words in (
        (small, [f"50 x {H} px", f"{W} x {H} px", "crop"]),
        (deep, ["16 bits", "expected 8", "same depth"]),
        (turned, ["left.png has EXIF orientation 1", "turned.png has 3", "same orientation tag"]),
        (tmp_path / "missing", ["missing", "does not exist"]),
        (tmp_path / "empty", ["is empty"]),
        (tmp_path / "damaged", ["damaged or truncated"]),
        (tmp_path / "text", ["not a PNG, TIFF, JPEG, PGM or PPM"]),
    ):
        check_error(run("deblur", pair[0], right, "-o", out), *words)
        if right != turned:
            check_error(run("deblur", *pair, "-o", out, "--target", right), right.name, words[0])
    check_error(run("blur-map", pair[0], small, "-o", out), "small.png is 50 x")
    assert files(tmp_path) == before


def test_nothing_is_computed_for_an_output_that_cannot_be_written(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(Deblurrer, "from_bundle", compute)
    (tmp_path / "folder.png").mkdir()
    deep, deeper = (save(tmp_path / name, scene(np.uint16, i)) for i, name in enumerate(("deep.png", "deeper.png")))
    clear = save(tmp_path / "clear.png", scene(shift=1), alpha=scene()[..., 0])
    os.link(pair[1], tmp_path / "hard.png")
    before = files(tmp_path)
    ok = tmp_path / "ok.png"
    for arguments, words in [
        ((*pair, "-o", tmp_path / "missing" / "out.png"), ["missing does not exist; make it first"]),
        ((*pair, "-o", tmp_path / "folder.png"), ["is a folder"]),
        ((*pair, "-o", tmp_path / "out.gif"), ["'.gif'"]),
        ((*pair, "-o", tmp_path / "out"), ["got no suffix"]),
        ((*pair, "-o", tmp_path), ["is a folder; give a file name in it"]),
        ((*pair, "-o", pair[0]), ["left.png is an input", "choose another name"]),
        ((*pair, "-o", tmp_path / "hard.png"), ["hard.png is an input"]),
        ((*pair, "-o", tmp_path / "missing" / ".." / "left.png"), ["left.png is an input"]),
        ((*pair, "-o", ok, "--target", deep, "--compare", deep), ["deep.png is an input"]),
        ((*pair, "-o", ok, "--blur-map", ok), ["are one file"]),
        ((*pair, "-o", ok, "--blur-map", tmp_path / "map.txt"), [".npy", "'.txt'"]),
        ((*pair, "-o", ok, "--compare", tmp_path / "c.npy"), ["'.npy'"]),
        ((*pair, "-o", ok, "--compare", tmp_path / "missing" / "c.png"), ["missing does not exist"]),
        ((deep, deeper, "-o", tmp_path / "out.jpg"), ["JPEG holds 8 bits", ".png or .tif"]),
        ((clear, pair[1], "-o", tmp_path / "out.jpg"), ["JPEG holds no alpha"]),
    ]:
        check_error(run("deblur", *arguments), *words)
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


def test_bundle_and_backend_errors(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    check_error(run("deblur", *pair, "-o", out, "--bundle", "no-such-bundle"), "no-such-bundle")
    damaged = make_tiny_bundle(tmp_path, "damaged")
    graph = damaged / "deblur.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    check_error(run("deblur", *pair, "-o", out, "--bundle", damaged), "deblur.onnx")
    code, _, err = run("deblur", *pair, "-o", out, "--threads", "0")
    assert code == 2 and err.endswith("argument --threads: expected a whole number of at least 1, got '0'\n"), err
    check_error(run("deblur", *pair, "-o", out, "--precision", "bf16"), "bf16")
    assert not out.exists()


def test_without_a_blur_map_there_is_none_to_write(
    run: Run, pair: tuple[str, str], tmp_path: Path, bundle_without_clip: Path
) -> None:
    before = files(tmp_path)
    options = ("-o", tmp_path / "out.png", "--bundle", bundle_without_clip)
    refused = run("deblur", *pair, *options, "--blur-map", tmp_path / "map.png")
    check_error(refused, "bundle 'mapless' has no blur map: its network reads none")
    assert files(tmp_path) == before
    compare = tmp_path / "compare.png"
    assert run("deblur", *pair, *options, "--compare", compare)[::2] == (0, "")
    mapless = Deblurrer.from_bundle(bundle_without_clip, backend="onnxruntime", precision="fp32", threads=1)
    expected = mapless(scene(shift=1), scene(shift=-1)).restored
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").pixels, expected)
    assert read_photo(compare).pixels.shape[1] < 6 * W  # two panels, without the wide label of a blur map


# --- one file for both views --------------------------------------------------------------------------------


def test_a_raw_photo_in_place_of_a_pair(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    pytest.importorskip("rawpy")
    photo, out = tmp_path / "a.dng", tmp_path / "out.tif"
    photo.write_bytes(small_dng(H + 1, W + 1))
    code, printed, err = run("deblur", photo, "-o", out)
    assert (code, err) == (0, "")
    assert "note     the file does not say which side its second frame is" in printed
    restored = deblurrer.restore_files(photo)
    np.testing.assert_array_equal(read_photo(out).pixels, restored.pixels)
    assert b"Model" in (read_photo(out).exif or b"")
    _, printed, _ = run("deblur", photo, "-o", out, "--swap", "--json")
    assert "--swap" in json.loads(printed)["notes"][0]
    assert (read_photo(out).pixels != restored.pixels).any()
    check_error(run("deblur", photo, photo, "-o", out), "holds one frame")


def test_side_by_side(run: Run, tmp_path: Path, deblurrer: Deblurrer) -> None:
    views = scene(shift=1), scene(shift=-1)
    photo = save(tmp_path / "both.png", np.concatenate(views, axis=1))
    out = tmp_path / "out.png"
    assert run("deblur", photo, "-o", out, "--side-by-side")[0] == 0
    np.testing.assert_array_equal(read_photo(out).pixels, deblurrer(*views).restored)
    out.unlink()
    check_error(run("deblur", photo, "-o", out), "both.png holds one picture", "--side-by-side")
    check_error(run("deblur", photo, photo, "-o", out, "--side-by-side"), "expected one picture")
    check_error(run("deblur", photo, "-o", photo, "--side-by-side"), "is an input")
    assert not out.exists()
