from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, for reading."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, for changing."""
    return shutil.copytree(pristine, tmp_path / "tiny")
