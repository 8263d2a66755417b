import gc
import locale
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldp_runtime import Deblurrer

_CHARACTERS = locale.setlocale(locale.LC_CTYPE)


@pytest.fixture(autouse=True)
def locale_of_the_start() -> None:
    """A library that sets the process's locale does so for its own test alone: text is decoded by it."""
    locale.setlocale(locale.LC_CTYPE, _CHARACTERS)


def pytest_configure() -> None:
    """The garbage collector comes less often: imports and graphs make millions of objects that stay."""
    gc.set_threshold(10_000)


def pytest_collection_finish() -> None:
    """Nor does it look again through what is there once the tests are collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle; no test changes it."""
    from tests.ldp_runtime.tiny_bundle import make_tiny_bundle  # needs onnx, which the tests on a GPU may lack

    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle(pristine: Path) -> Path:
    """The same; some folders have another bundle of this name."""
    return pristine


@pytest.fixture(scope="session")
def deblurrer(pristine: Path) -> Deblurrer:
    """A deblurrer with the tiny bundle, in one thread of ONNX Runtime in FP32."""
    return Deblurrer.from_bundle(pristine, backend="onnxruntime", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests of a file compile and compute does not enter the user's cache, nor come from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """SIGINT interrupts this process and those that it starts, even where the suite runs in the background.

    A shell starts background jobs with SIGINT ignored; children inherit that, and Python then installs no handler.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
