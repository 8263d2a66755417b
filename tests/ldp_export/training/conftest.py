from pathlib import Path

import pytest

VALID = """\
name: a
network: {base: small, name: other, bpa: []}
clip: folder
data: [{dataset: simulated, folder: scenes}]
stages:
  - {steps: 10, lr: 2e-4}
  - {hours: 0.5, losses: {charbonnier: 1, blur_aware: 0.1}}
betas: [0.9, 0.95]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(VALID)
    return path
