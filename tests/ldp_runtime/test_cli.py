import json
import os
import struct
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ldp_runtime import Deblurrer, __version__
from ldp_runtime.backends import openvino as openvino_backend
from ldp_runtime.cli import main
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo, read_photo
from tests.ldp_runtime.conftest import BACKEND, Run, scene
from tests.ldp_runtime.images.pictures import pillow
from tests.processes import python


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


def test_a_process_restores_a_pair(pair: tuple[str, str], tmp_path: Path, bundle: Path, deblurrer: Deblurrer) -> None:
    out = str(tmp_path / "out.png")
    command = [sys.executable, "-m", "ldp_runtime", "deblur", *pair, "-o", out, "--bundle", str(bundle), *BACKEND]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["bundle"] == "tiny"
    expected = deblurrer(scene(shift=1), scene(shift=-1)).restored
    np.testing.assert_array_equal(read_photo(out).pixels, expected)


def test_a_process_says_one_line_about_a_damaged_file(tmp_path: Path, pair: tuple[str, str], bundle: Path) -> None:
    """OpenCV, tifffile and Pillow write messages of their own to stderr, which only a process shows."""
    deep = scene(np.uint16)
    strip = b"\xff" * 100
    lzw = cv2.imencode(".tif", deep, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    deflate = encode_photo("deep.tif", Photo(deep))
    damaged = {
        "lzw": lzw[:8] + strip + lzw[108:],
        "deflate": deflate[:8] + strip + deflate[108:],
        "tags": deflate.replace(struct.pack("<HH", 258, 3), struct.pack("<HH", 258, 99)),  # no such type
        "png": encode_photo("deep.png", Photo(deep))[:-100],
    }
    out = str(tmp_path / "out.png")
    commands = []
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        commands.append(["deblur", str(tmp_path / name), pair[1], "-o", out])
    for name, shift in (("l.tif", 1), ("r.tif", -1)):  # a description that ends beyond the file: no fault
        tiff = bytearray(pillow(scene(shift=shift), "TIFF", compression="tiff_lzw", description="to be cut off"))
        struct.pack_into("<I", tiff, tiff.index(struct.pack("<HH", 270, 2)) + 4, 2**20)
        (tmp_path / name).write_bytes(tiff)
    views = [str(tmp_path / "l.tif"), str(tmp_path / "r.tif")]
    commands.append(["deblur", *views, "-o", out, "--bundle", str(bundle), *BACKEND, "-q"])
    done = python(f"from ldp_runtime.cli import main; print(*[main(argv) for argv in {commands!r}])")
    assert done.stdout == "2 2 2 2 0\n"
    lines = done.stderr.splitlines()
    assert len(lines) == len(damaged)
    for name, line in zip(damaged, lines, strict=True):
        assert line.startswith(f"ldp: error: {tmp_path / name} is damaged or truncated")


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ldp_runtime", "info"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


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


def test_without_any_backend_each_reason_is_printed(
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
        assert done.stderr == ""  # openvino runs, the other was not asked for
