from pathlib import Path

import pytest

from benchmarks.roofline.chain import Chain, build_chain
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


@pytest.fixture(scope="session")
def nano_bundle() -> Bundle:
    return Bundle.load(NANO)


@pytest.fixture(scope="session")
def chain(nano_bundle: Bundle) -> Chain:
    """Of a photo of 100 x 150 px; TensorRT-RTX builds its engines."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    return build_chain(nano_bundle, (100, 150))
