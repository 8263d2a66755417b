"""Deconvolution by a map of Gaussian blur, with a hyper-Laplacian prior (Krishnan and Fergus, NIPS 2009).

The settings are those that DMENet's repository publishes for DPD-blur. The map is cut into bins of equal share; the
whole photo is deconvolved once for each, and each pixel is taken from the result of its bin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Map = NDArray[np.float64]

BINS = 32
REACH = 50
"""Px from the center of the largest kernel to its border: 101 x 101 px."""
FIDELITY = 16.8
"""Weight of the data against the prior, lambda."""
STEPS = tuple((2 * math.sqrt(2)) ** i for i in range(6))
"""The weights beta of the continuation: from 1 by factors of ``2 sqrt(2)`` below 256."""
_TAPERS = 4


def deconvolve(image: Map, sigma: Map) -> Map:
    """Restores a photo from a map of its blur.

    Args:
        image: ``(h, w, 3)`` in [0, 1].
        sigma: ``(h, w)``: standard deviation of the blur in px.

    Returns:
        ``(h, w, 3)`` in [0, 1].
    """
    edges = np.unique(np.quantile(sigma, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, sigma, side="left")
    restored = image.astype(np.float64)
    for number in np.unique(bins):
        inside = bins == number
        kernel = gaussian(float(sigma[inside].mean()))
        if len(kernel) > 1:
            planes = deconvolve_evenly(image.transpose(2, 0, 1), kernel)
            restored[inside] = planes[:, inside].T
    return np.clip(restored, 0, 1)


def gaussian(sigma: float) -> Map:
    """The samples ``(2r + 1,)`` of a Gaussian that do not vanish in double precision; their sum is 1."""
    reach = min(REACH, int(sigma * math.sqrt(-2 * math.log(np.finfo(np.float64).eps))))
    place = np.arange(-reach, reach + 1)
    samples = np.exp(-0.5 * np.square(place / sigma)) if reach else np.ones(1)
    return samples / samples.sum()


def deconvolve_evenly(planes: Map, kernel: Map) -> Map:
    """Deconvolves planes that are blurred alike everywhere.

    Minimises ``lambda / 2 |k * x - y|^2 + |dx x|^1.5 + |dy x|^1.5`` by half-quadratic splitting (equation 2 of the
    paper): for each beta of ``STEPS`` the gradients are solved for, then x in closed form (equation 3).

    Args:
        planes: ``(c, h, w)``.
        kernel: ``(2r + 1,)``, the blur along each axis.

    Returns:
        ``(c, h, w)``.
    """
    reach = len(kernel) // 2
    blurred = np.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    for _ in range(_TAPERS):
        blurred = taper(blurred, kernel)
    size = blurred.shape[1:]
    response = transfer(kernel, size)
    gradients = [transfer(np.array([0.0, 1.0, -1.0]), size, axis) for axis in (0, 1)]
    data, power = response.conj() * fft.rfft2(blurred), np.abs(response) ** 2
    slope_power = sum(np.abs(gradient) ** 2 for gradient in gradients)
    x = blurred
    for beta in STEPS:
        share = beta / FIDELITY
        wanted = np.zeros_like(data)
        for axis, gradient in enumerate(gradients, 1):
            wanted += gradient.conj() * fft.rfft2(shrink(x - np.roll(x, 1, axis), beta))
        x = fft.irfft2((data + share * wanted) / (power + share * slope_power), s=size)
    return x[:, reach : size[0] - reach, reach : size[1] - reach]


def shrink(v: Map, beta: float) -> Map:
    """The w that minimises ``|w|^1.5 + beta / 2 (w - v)^2``: its square root solves a quadratic equation."""
    root = (np.sqrt(2.25 + 4 * beta**2 * np.abs(v)) - 1.5) / (2 * beta)
    return np.sign(v) * np.square(root)


def transfer(kernel: Map, size: tuple[int, int], axis: int | None = None) -> NDArray[np.complex128]:
    """The transfer function ``(h, w / 2 + 1)`` of a kernel of odd length, along one axis or along both."""
    along = []
    for i, count in enumerate(size):
        taps = np.zeros(count)
        if axis is None or axis == i:
            np.add.at(taps, np.arange(-(len(kernel) // 2), len(kernel) // 2 + 1) % count, kernel)
        else:
            taps[0] = 1
        along.append(fft.rfft(taps) if i else fft.fft(taps))
    return along[0][:, None] * along[1]


def taper(planes: Map, kernel: Map) -> Map:
    """Blends the borders into their blurred, circular continuation, as Matlab's ``edgetaper`` does.

    The weight falls with the kernel's autocorrelation from the border inwards.
    """
    size = planes.shape[1:]
    weights = []
    for count in size:
        spectrum = fft.fft(kernel, max(count - 1, len(kernel)))
        correlation = fft.ifft(np.abs(spectrum) ** 2).real
        correlation = np.append(correlation[: count - 1], correlation[0])
        weights.append(1 - correlation / correlation.max())
    weight = weights[0][:, None] * weights[1]
    continued = fft.irfft2(transfer(kernel, (size[0], size[1])) * fft.rfft2(planes), s=size)
    return weight * planes + (1 - weight) * continued
