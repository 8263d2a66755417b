"""The runtime imports no torch: proved with imports blocked, and in a virtual environment without it."""

import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ldp_runtime
from ldp_runtime.images.photo import read_photo, write_pixels
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle
from tests.processes import ROOT, output, python

IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
import ldp_runtime
names = ["ldp_runtime"]
for module in pkgutil.walk_packages(ldp_runtime.__path__, "ldp_runtime."):
    if module.name.startswith("ldp_runtime.service.") and importlib.util.find_spec("fastapi") is None:
        continue
    importlib.import_module(module.name)
    names.append(module.name)
ldp_runtime.Deblurrer
assert "torch" not in sys.modules and "ldp_export" not in sys.modules
print(*names)
"""

BLOCKED = ("torch", "torchvision", "open_clip", "onnx", "scipy", "skimage", "ldp_export")


def modules() -> set[str]:
    """Every module of the package, by its files."""
    found = {"ldp_runtime"}
    found |= {module.name for module in pkgutil.walk_packages(ldp_runtime.__path__, "ldp_runtime.")}
    assert {"ldp_runtime.cli", "ldp_runtime.deblurrer", "ldp_runtime.backends.openvino"} <= found
    return found


def test_every_module_imports_where_torch_is_blocked() -> None:
    assert set(output(IMPORT_ALL, blocked=BLOCKED).split()) == modules()


def test_the_block_blocks() -> None:
    done = python("import torch", blocked=BLOCKED)
    assert done.returncode == 1
    assert "ImportError: torch is blocked" in done.stderr


def test_help_loads_no_heavy_library() -> None:
    code = """
import sys
from ldp_runtime.cli import COMMANDS, main
for arguments in ["--version"], ["--help"], *([name, "--help"] for name in COMMANDS):
    assert main(arguments) == 0
heavy = {"cv2", "fastapi", "openvino", "onnxruntime", "PIL", "tifffile", "torch", "uvicorn"}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""
    assert output(code).splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        ("ldp_runtime", "numpy"),
        ("ldp_runtime.images.photo", "ldp_runtime.backends"),
        ("ldp_runtime.deblurrer, ldp_runtime.backends, ldp_runtime.bundle.bundle", "cv2 onnx onnxruntime openvino"),
    ],
)
def test_imports_load_nothing_that_takes_time(imports: str, absent: str) -> None:
    code = f"import sys, {imports}; print(*set({absent.split()}) & set(sys.modules), ldp_runtime.Deblurrer.__name__)"
    assert output(code) == "Deblurrer\n"


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a new virtual environment that holds the base dependencies alone."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    executable = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pip = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--constraint", str(ROOT / "constraints.txt"), *dependencies],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode != 0 and any(
        sign in done.stderr for sign in ("Failed to establish a new connection", "NameResolutionError", "Network is")
    ):
        pytest.skip("pip has no network to install the base dependencies from")
    assert done.returncode == 0, done.stderr
    return executable


@pytest.mark.slow
@pytest.mark.bare_venv
def test_every_module_imports_in_a_bare_venv(bare_python: str) -> None:
    assert "No module named 'torch'" in python("import torch", executable=bare_python).stderr
    found = output(IMPORT_ALL, executable=bare_python).split()
    # What the command serve imports needs the extra of that name.
    assert set(found) == {name for name in modules() if not name.startswith("ldp_runtime.service.")}


@pytest.mark.slow
@pytest.mark.bare_venv
def test_a_pair_is_restored_in_a_bare_venv(bare_python: str, tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        write_pixels(tmp_path / f"{name}.png", rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16))
    arguments = ["deblur", "left.png", "right.png", "-o", "out.tif", "--compare", "c.jpg", "--bundle", "tiny"]
    code = f"import os, sys; from ldp_runtime.cli import main; os.chdir({str(tmp_path)!r}); "
    code += f"sys.exit(main({arguments!r}))"
    output(code, executable=bare_python, LDP_BUNDLES=str(tmp_path))
    restored = read_photo(tmp_path / "out.tif").pixels
    assert (restored.shape, restored.dtype) == ((20, 30, 3), np.uint16)
