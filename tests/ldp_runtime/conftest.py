"""A tiny bundle, a small pair, and ``ldp`` run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from ldp_runtime.cli import main
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import write_photo
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

H, W = 37, 51
BACKEND = ["--backend", "onnxruntime", "--precision", "fp32", "--threads", "1"]
Run = Callable[..., tuple[int, str, str]]

settings.load_profile("ci")  # the same cases each time, however slow the machine is


def scene(dtype: Any = np.uint8, shift: int = 0, height: int = H, width: int = W, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.1, 0.9, (-(-height // 8), -(-width // 8), 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return np.round(np.roll(image, shift, axis=1) * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(own_cache: None) -> None: ...


@pytest.fixture(scope="session")
def bundle_without_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"), "mapless", clip=False)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Paths of a left and a right view, 8-bit PNG."""
    for name, shift in (("left", 1), ("right", -1)):
        write_photo(tmp_path / f"{name}.png", Photo(scene(shift=shift)))
    return str(tmp_path / "left.png"), str(tmp_path / "right.png")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bundle: Path) -> Run:
    """Runs ``ldp`` in this process: exit code, stdout, stderr. Pair commands get the tiny bundle."""

    def call(*arguments: object) -> tuple[int, str, str]:
        argv = [str(argument) for argument in arguments]
        if argv and argv[0] in ("deblur", "blur-map"):
            argv[1:1] = ["--bundle", str(bundle), *BACKEND]
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_error(result: tuple[int, str, str], *words: str) -> None:
    """Asserts that a command failed by the user's fault, with one line that has these words."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("ldp: error: ")
    assert err.count("\n") == 1, err
    assert [word for word in words if word not in err] == [], err


@pytest.fixture(scope="module")
def exact(bundle: Path) -> Deblurrer:
    return Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A tiny bundle to change."""
    return make_tiny_bundle(tmp_path)
