import dataclasses
from pathlib import Path

import pytest
import torch

from ldp_export.checkpoint import Checkpoint
from ldp_export.network import LDPNet
from ldp_export.training import TrainingError, inputs
from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint


@torch.no_grad()
def test_added_blocks_begin_as_the_identity(tmp_path: Path) -> None:
    start = Checkpoint.open(make_tiny_checkpoint(tmp_path / "start"))
    pair, logits = torch.rand(1, 6, 32, 32), torch.randn(1, 1, 2, 2)
    deeper = dataclasses.replace(start.config(), name="deeper", encoder=(2,), middle=3)
    network = LDPNet(deeper).eval()
    network.load_state_dict(inputs._starting_weights(start, network))
    assert len(network.middle) == 3
    assert torch.equal(network(pair, logits), start.network()(pair, logits))
    for other in ({"width": 16}, {"middle": 0}, {"kernel": 5}):
        with pytest.raises(TrainingError, match="add blocks to its levels alone"):
            inputs._starting_weights(start, LDPNet(dataclasses.replace(deeper, **other)))  # type: ignore[arg-type]
