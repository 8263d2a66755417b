import torch

from ldp_export.network.published.mimo import Group, conv, up


def test_sizes_and_names() -> None:
    group = Group(conv(3, 8, 5, stride=2, activation=torch.nn.ReLU()), up(8, 4, torch.nn.ReLU()))
    assert list(group.state_dict()) == ["layers.0.main.0.weight", "layers.1.main.0.weight"]
    with torch.no_grad():
        x = group(torch.randn(1, 3, 8, 12))
    assert x.shape == (1, 4, 8, 12) and x.min() == 0
