import msgspec
import pytest
import torch
from torch import nn

from ldp_export.network import LDPNet
from ldp_export.training import DataConfig, StageConfig, TrainConfig
from ldp_export.training.optimisation import WeightAverage, decays, learning_rate, make_optimizer
from tests.ldp_export.tiny_models import TINY_CONFIG


def test_the_learning_rate_falls_as_half_a_cosine() -> None:
    stage = StageConfig(steps=100, lr=2e-4, final_lr=1e-6)
    assert learning_rate(stage, 0, 0.0) == pytest.approx(2e-4)
    assert learning_rate(stage, 50, 0.5) == pytest.approx((2e-4 + 1e-6) / 2)
    assert learning_rate(stage, 100, 1.0) == pytest.approx(1e-6)
    warm = msgspec.structs.replace(stage, warmup=4)
    assert [learning_rate(warm, step, 0.0) / 2e-4 for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_the_average_is_a_mean_and_then_forgets() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0)
    average, values = WeightAverage(model, 0.75), []
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(step)
        with average.swapped_in():
            values.append(model.weight.item())
    assert model.weight.item() == 5
    assert values[:3] == pytest.approx([0.5, 1, 1.5])  # means of 0..step
    assert values[3:] == pytest.approx([0.75 * 1.5 + 0.25 * 4, 0.75 * 2.125 + 0.25 * 5])


def test_weight_decay_is_of_convolutions_alone() -> None:
    config = TrainConfig(
        name="a", stages=(StageConfig(steps=1),), data=(DataConfig("simulated", "scenes"),), weight_decay=1e-3
    )
    network = LDPNet(TINY_CONFIG)
    parameters = list(network.parameters())
    optimizer = make_optimizer(config, parameters, [decays(p) for p in parameters])
    decayed, kept = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay, 0.0]
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight"}
    assert any(names[id(p)].endswith("beta") for p in kept)
    assert len(decayed) + len(kept) == len(parameters)
