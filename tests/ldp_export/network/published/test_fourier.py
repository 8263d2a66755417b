import pytest
import torch

from ldp_export.network.published.fourier import Fourier


def places(fourier: Fourier) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frequency stands where, along rows and along columns."""
    first, second = fourier.factors
    k = torch.arange(first)[:, None] + first * torch.arange(second)
    return k.flatten(), k[:, : second // 2 + 1].flatten()


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
def test_it_is_the_transform_in_an_order_of_its_own(size: int) -> None:
    fourier = Fourier(size)
    rows, columns = places(fourier)
    assert sorted(rows.tolist()) == list(range(size))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    real, imaginary = fourier.transform(x)
    expected = torch.fft.fft2(x, norm="ortho")[:, :, rows][..., columns % size]
    torch.testing.assert_close(torch.complex(real, imaginary), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fourier.invert(real, imaginary), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 32])
def test_the_inverse_of_what_is_no_real_maps_spectrum_is_irfft2s(size: int) -> None:
    """After pointwise layers the spectrum has no symmetry left; frequencies above half count for nothing."""
    fourier = Fourier(size)
    rows, columns = places(fourier)
    keep = columns <= size // 2
    both = torch.randn(2, 1, 2, size, len(columns), generator=torch.Generator().manual_seed(0))
    spectrum = torch.zeros(1, 2, size, size // 2 + 1, dtype=torch.complex64)
    spectrum[:, :, rows[:, None], columns[keep]] = torch.complex(both[0], both[1])[..., keep]
    expected = torch.fft.irfft2(spectrum, s=(size, size), norm="ortho")
    torch.testing.assert_close(fourier.invert(*both), expected, rtol=1e-4, atol=1e-5)
