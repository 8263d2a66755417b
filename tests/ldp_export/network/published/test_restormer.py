import numpy as np
import torch
from torch.nn import functional as F

from ldp_export.network.published.restormer import TransposedAttention
from ldp_export.network.randomise import randomise


def test_transposed_attention_as_its_equation() -> None:
    layer = randomise(TransposedAttention(8, 2), 1)
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        q, k, v = (t.reshape(2, 2, 4, 30) for t in layer.depthwise(layer.project_in(x)).chunk(3, dim=1))
        expected = torch.empty(2, 2, 4, 30)
        for b in range(2):
            for h in range(2):
                rows = [row / row.norm() for row in q[b, h]], [row / row.norm() for row in k[b, h]]
                logits = torch.stack([torch.stack([a @ c for c in rows[1]]) for a in rows[0]]) * layer.temperature[h]
                expected[b, h] = torch.softmax(logits, dim=1) @ v[b, h]
        expected = layer.project_out(expected.reshape(2, 8, 5, 6))
        torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_the_products_of_many_pixels_are_fp32() -> None:
    layer = randomise(TransposedAttention(8, 2), 1)
    x = torch.randn(1, 8, 256, 256)
    query = F.normalize(layer.depthwise(layer.project_in(x))[:, 0].flatten(), dim=0)
    naive = np.cumsum(query.square().numpy().astype(np.float16), dtype=np.float16)[-1]
    assert abs(float(naive) - 1) > 0.5, "a sum in FP16 would stall here"
    expected = layer(x)
    got = layer.half()(x.half()).float()
    assert (got - expected).abs().max() < 0.01 * expected.abs().max()
