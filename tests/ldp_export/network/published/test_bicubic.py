from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.bicubic import resize
from ldp_runtime.registry import BACKENDS


def stripes(height: int, width: int) -> Tensor:
    """``(1, 6, height, width)`` black and white px, with the steepest slopes that there are."""
    return torch.randint(0, 2, (1, 6, height, width), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(("size", "wanted"), [((5, 3), (7, 2)), ((40, 56), (288, 448)), ((4, 1792), (5, 1680))])
def test_it_is_torchs_bicubic_interpolation_in_float64(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = stripes(*size)
    expected = F.interpolate(image.double(), wanted, mode="bicubic")
    assert float((resize(image, wanted) - expected).abs().max()) < 5e-6
    if max(size) > 1000:
        assert float((F.interpolate(image, wanted, mode="bicubic") - expected).abs().max()) > 1e-4


class Resized(PublishedNetwork):
    """Resizes a pair to a size of its own and what it adds up there back, as K3DN does."""

    config = PublishedConfig("resized", multiple=1, memory=1)

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 3, 1)

    def forward(self, pair: Tensor) -> Tensor:
        height, width = pair.shape[2:]
        return resize(super().forward(resize(pair, (24, 1792))), (height, width))

    def restore(self, pair: Tensor) -> Tensor:
        return self.mix(pair)


@pytest.mark.slow
def test_graphs_agree_at_positions_that_fp32_rounds(tmp_path: Path) -> None:
    """Numbers of the widest photo exceed 2**24, up to which FP32 holds integers."""
    network = Resized().eval()
    save_graph(deblur_graph(network, 1, half=False, blur_map=False), path := tmp_path / "deblur.onnx")
    session = BACKENDS["onnxruntime"].open(path, "fp32", 1)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((20, 1680), (3, 9001)):
        pair = stripes(*size)
        with torch.inference_mode():
            expected = network(pair).numpy()
        for got in (session.run({"pair": pair.numpy()})["restored"], compiled({"pair": pair.numpy()})[0]):
            error = np.abs(got - expected)
            assert error.max() < 5e-6, f"{size}: mean {error.mean():.3g}, max {error.max():.3g}"
