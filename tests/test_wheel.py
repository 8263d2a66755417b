"""The wheel, installed where nothing of the repository can be seen: its commands work from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from ldp_runtime.images.photo import read_photo
from tests.faults.scenarios import noise_pair
from tests.ldp_export.data.miniatures import make_dpd_blur, make_scenes
from tests.ldp_runtime.batch.folders import BACKEND, make_pairs
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ldp_runtime", "ldp_export")

RUN = """
import json, sys
from pathlib import Path

from {package}.cli import main

for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    assert code == 0, (arguments, code)
assert str(Path(sys.modules["{package}"].__file__)).startswith(sys.prefix)
assert "benchmarks" not in sys.modules and "tests" not in sys.modules
"""
"""Runs several commands in one process, which imports their libraries once."""

pytestmark = pytest.mark.bare_venv


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; the dependencies are those of this one, whose .pth files do not count.

    An editable install is such a file.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    made = folder / "venv"
    venv.create(made, symlinks=True)
    (site,) = made.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(made / "bin" / "python"), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run, with a pair, a folder of pairs and the tiny bundle."""
    noise_pair(tmp_path)
    make_pairs(tmp_path / "pairs", 1)
    make_tiny_bundle(tmp_path)
    return tmp_path


def run(environment: Path, folder: Path, program: str, *arguments: str) -> str:
    """Runs a program of the environment in a folder that is not the repository; its standard output."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LDP_"))}
    done = subprocess.run(
        [str(environment / "bin" / program), *arguments],
        cwd=folder,
        env={**variables, "LDP_CACHE": str(folder / "cache"), "LDP_CONFIG": str(folder / "config")},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_all(environment: Path, folder: Path, package: str, *commands: str) -> str:
    """Runs commands of a package's program one after the other; their standard output."""
    given = [command.split() for command in commands]
    return run(environment, folder, "python", "-c", RUN.format(package=package), json.dumps(given))


def test_the_wheel_has_every_file_of_its_packages(environment: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    found = (file for package in PACKAGES for file in (ROOT / package).rglob("*.*"))
    files = [file for file in found if file.parent.name != "__pycache__"]
    assert {".py", ".csv", ".cu", ".html"} <= {file.suffix for file in files}
    assert [file for file in files if not (site / file.relative_to(ROOT)).is_file()] == []
    assert (site / "ldp_runtime" / "models" / "ldp-nano" / "bundle.json").is_file()


def test_the_runtimes_commands(environment: Path, folder: Path) -> None:
    options = " ".join(("-q", *BACKEND))
    shown = run_all(
        environment,
        folder,
        "ldp_runtime",
        f"deblur left.png right.png -o sharp.png --blur-map map.png {options}",  # by ldp-nano, which the wheel brings
        f"blur-map left.png right.png -o alone.png --bundle tiny {options}",
        f"batch pairs out --bundle tiny {options}",
        "info",
        "selftest --backend onnxruntime",
        "serve --help",
    )
    assert "ldp-nano" in shown
    assert read_photo(folder / "sharp.png").pixels.shape == (40, 56, 3)
    assert {path.name for path in folder.glob("*.png")} >= {"map.png", "alone.png"}
    assert (folder / "out" / "00" / "pair.png").is_file()
    for program in ("ldp", "ldp-export"):
        assert run(environment, folder, program, "--version").startswith(program)


def test_an_evaluation_has_the_papers_rows_and_a_pair_is_simulated(environment: Path, folder: Path) -> None:
    make_dpd_blur(folder, "test", ["0761"], (24, 32))
    np.save(folder / "disparity.npy", np.tile(np.linspace(1, 9, 56, dtype=np.float32), (40, 1)))
    data = "--data dpd-blur=dd_dp_dataset_canon"
    run_all(
        environment,
        folder,
        "ldp_export",
        f"evaluate tiny {data} -o scores --backend onnxruntime --precision fp32",
        "simulate left.png -o pair --disparity disparity.npy --max-coc 3",
        "data check dpd-blur dd_dp_dataset_canon --split test",
    )
    (report,) = (folder / "scores").glob("*.md")
    assert "| paper, Ours (Small) (Table 1) | 26.91 | 0.8310 |" in report.read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "pair").iterdir()} >= {"left", "right"}


@pytest.mark.slow
def test_the_exporters_other_commands(environment: Path, folder: Path) -> None:
    from tests.faults.scenarios import training_scenario
    from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint

    checkpoint = make_tiny_checkpoint(folder / "checkpoint")
    training = training_scenario(folder, checkpoint)
    make_scenes(folder / "rendered")
    run_all(
        environment,
        folder,
        "ldp_export",
        " ".join(training.arguments(folder)),
        "calibrate checkpoint --scenes rendered",
        "onnx run/checkpoint -o exported",
        "selftest exported",
        "quantize exported --max-loss 100 --pairs 1",
        "triton exported -o models --variant onnxruntime",
        "sample -o sample",
    )
    assert training.complete(folder) == []
    assert (folder / "models").is_dir() and (folder / "sample" / "target.png").is_file()
    assert "int8" in (folder / "exported" / "bundle.json").read_text(encoding="utf-8")
