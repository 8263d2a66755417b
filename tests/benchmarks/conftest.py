from __future__ import annotations

import pytest

from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle; no test changes it."""
    return Bundle.load(make_tiny_bundle(tmp_path_factory.mktemp("bundles")))
