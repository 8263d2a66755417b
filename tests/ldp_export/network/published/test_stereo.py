import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published.stereo import Features, cost_volume, cut, join
from tests.ldp_export.network.published.states import State, random_state, relative_error


def norm_relu(state: State, name: str, x: Tensor) -> Tensor:
    statistics = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *statistics))


def view_features(state: State, start: str, view: Tensor, cells: tuple[int, int], stride: int) -> Tensor:
    """The facts' list of layers, one call each."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        x = F.conv2d(x, state[f"{start}{name}.conv.weight"], **options)
        return norm_relu(state, f"{start}{name}.bn", x)

    x = conv("start.0", view, padding=1)
    x = conv("start.1", x, padding=1)
    x = conv("layer1.0", x, padding=4, dilation=4)
    x = conv("layer1.1", x, padding=8, dilation=8, stride=stride)
    parts = []
    for branch, cell in (("branch1", cells[0]), ("branch3", cells[1])):
        y = F.avg_pool2d(x, cell)
        y = F.conv2d(F.pad(y, (1, 1, 1, 1)), state[f"{start}{branch}.1.0.weight"])  # a rim of zeros
        y = norm_relu(state, f"{start}{branch}.1.1", y)
        parts.append(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True))
    x = conv("end.0", torch.cat([*parts, x], 1), padding=1)
    return F.conv2d(x, state[f"{start}end.1.conv.weight"])


def shifted_volume(left: Tensor, right: Tensor) -> Tensor:
    """Slice by slice and column by column."""
    batch, channels, height, width = left.shape
    cost = torch.zeros(batch, 2 * channels, 4, height, width)
    for i in range(4):
        for column in range(i, width):
            cost[:, :channels, i, :, column] = left[..., column]
            cost[:, channels:, i, :, column] = right[..., column - i]
    return cost


@torch.no_grad()
def test_features_of_a_view() -> None:
    """As DDDNet has them and as K3DN does; without the zeros around the means they differ."""
    for cells, stride in (((64, 16), 1), ((32, 16), 2)):
        features = Features(cells, stride).eval()
        state = random_state({name: tuple(value.shape) for name, value in features.state_dict().items()})
        features.load_state_dict(state)
        view = torch.rand(1, 3, 72, 80, generator=torch.Generator().manual_seed(0))
        expected = view_features(state, "", view, cells, stride)
        assert relative_error(features(view), expected) < 1e-5
        for branch in (features.branch1, features.branch3):
            branch[1][0].padding = (0, 0)
            assert relative_error(features(view), expected) > 1e-4
            branch[1][0].padding = (1, 1)


def test_cost_volume_column_by_column() -> None:
    left, right = torch.randn(2, 1, 2, 3, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.equal(cost_volume(left, right), shifted_volume(left, right))
    assert not torch.equal(cost_volume(right, left), shifted_volume(left, right))


def test_cells_are_cut_row_by_row_and_joined_again() -> None:
    x = torch.randn(2, 3, 4, 9)
    cells = cut(x, 2, 3)
    assert torch.equal(cells[1 * 6 + 1 * 3 + 2], x[1, :, 2:, 6:])
    assert torch.equal(join(cells, 2, 3), x)
