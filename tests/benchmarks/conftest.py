from pathlib import Path

import pytest

from ldp_runtime.bundle.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(pristine: Path) -> Bundle:
    """The tiny bundle, loaded; no test changes it."""
    return Bundle.load(pristine)
