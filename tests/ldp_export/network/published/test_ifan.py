import numpy as np
import torch

from ldp_export.network.published.ifan import FILTERS, SLOPE, TAPS, adaptive_convolution


def test_adaptive_convolution_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 5, generator=generator)
    filters = torch.randn(1, FILTERS * 2 * (TAPS + 1), 4, 5, generator=generator) / 2
    expected = x[0].numpy().astype(np.float64)
    for step in filters[0].numpy().reshape(FILTERS, 2 * (TAPS + 1), 4, 5):
        taps, bias = step[:6].reshape(TAPS, 2, 4, 5), step[6:]
        for axis in (1, 2):
            widths = [(0, 0), (0, 0), (0, 0)]
            widths[axis] = (1, 1)
            padded = np.pad(expected, widths, mode="edge")
            shifted = [np.take(padded, range(i, i + expected.shape[axis]), axis) for i in range(TAPS)]
            expected = sum(w * s for w, s in zip(taps, shifted, strict=True))
        expected = expected + bias
        expected = np.where(expected > 0, expected, SLOPE * expected)
    np.testing.assert_allclose(adaptive_convolution(x, filters)[0].numpy(), expected, rtol=1e-4, atol=1e-5)
