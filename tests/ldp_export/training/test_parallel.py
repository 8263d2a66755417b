import msgspec
import pytest
import torch
from torch import Tensor, nn

from ldp_export.training import DataConfig, StageConfig, TrainConfig, parallel
from ldp_export.training.parallel import open_fabric

CONFIG = TrainConfig(
    name="a",
    stages=(StageConfig(steps=1),),
    data=(DataConfig("simulated", "scenes"),),
    network="nano",
    clip="clip",
    precision="fp32",
    device="cpu",
)


def test_mixed_precision_does_not_round_the_pair() -> None:
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x @ self.weight

    x = torch.full((4, 4), 1 - 2**-12)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        fabric = open_fabric(msgspec.structs.replace(CONFIG, precision=precision))
        seen, multiplied = fabric.setup_module(Sees())(x)
        assert torch.equal(seen, x)
        assert torch.equal(multiplied, x.to(dtype).float())


@pytest.mark.parametrize("has_bf16", [False, True])
def test_slow_arithmetic_is_warned_of(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel, "cpu_has_bf16", lambda: has_bf16)
    for precision in ("fp32", "bf16"):
        open_fabric(msgspec.structs.replace(CONFIG, precision=precision))
        warned = "set precision to fp32" in capsys.readouterr().err
        assert warned == (precision == "bf16" and not has_bf16)
