import shutil
from pathlib import Path

import pytest


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, for changing."""
    return shutil.copytree(pristine, tmp_path / "tiny")
