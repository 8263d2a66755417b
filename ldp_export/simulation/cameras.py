"""Random cameras: what sensor and processing make of the light of a dual-pixel pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.simulation.optics import FloatArray
from ldp_export.simulation.simulate import quantise
from ldp_runtime.images.linear import linear_to_srgb

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """From linear light to an 8-bit image.

    Attributes:
        shot: Noise variance of the raw value at full scale.
        read: Noise deviation of the raw value.
        balance: White-balance gains of R, G and B: what the raw values are multiplied with.
        mosaic: Noise is that of a Bayer mosaic, demosaiced bilinearly; otherwise each channel has its own.
        grain: Deviation in px of the Gaussian that correlates the noise of neighbours, as resizing does; 0 is none.
        encoded: The scene was blurred after the tone curve, so what comes in is encoded already.
        gamma: Exponent of the tone curve; None is sRGB's.
        contrast: Strength of an S-curve over it.
        denoise: Strength of a bilateral filter in multiples of the noise; 0 is none.
        sharpen: Amount of an unsharp mask; 0 is none.
        late: Deviation of noise after encoding, in [0, 1].
        quality: Of JPEG; None is none.
        exposure: Natural logarithm of the gain of the left view over the right.
        shading: How much brighter the left view gets from the left border to the right one; the right view does the
            opposite.
        grey: Luminance alone, in three equal channels.
    """

    shot: float = 0.0
    read: float = 0.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mosaic: bool = False
    grain: float = 0.0
    encoded: bool = False
    gamma: float | None = None
    contrast: float = 0.0
    denoise: float = 0.0
    sharpen: float = 0.0
    late: float = 0.0
    quality: int | None = None
    exposure: float = 0.0
    shading: float = 0.0
    grey: bool = False

    def views(self, rng: np.random.Generator, left: FloatArray, right: FloatArray) -> tuple[Pixels, Pixels]:
        """Left and right photographs ``(h, w, 3)`` of light ``(h, w, 3)``, full scale 1."""
        ramp = np.linspace(-0.5, 0.5, left.shape[1], dtype=np.float32)[None, :, None]
        shot = []
        for light, side in ((left, 1), (right, -1)):
            gain = np.float32(np.exp(side * self.exposure / 2)) * (1 + np.float32(side * self.shading) * ramp)
            shot.append(self._photograph(rng, light * gain))
        return shot[0], shot[1]

    def target(self, light: FloatArray) -> Pixels:
        """The photograph ``(h, w, 3)`` of sharp light ``(h, w, 3)``: no noise, no compression, the same tones."""
        return np.asarray(quantise(self._sharpened(self._toned(self._colored(light)))), np.uint8)

    def _photograph(self, rng: np.random.Generator, light: FloatArray) -> Pixels:
        light = self._colored(light)
        image = self._toned(light + self._noise(rng, light))
        if self.denoise:
            noise = max(float(np.abs(image - self._toned(light)).mean()), 1 / 255)
            image = np.asarray(cv2.bilateralFilter(image, 5, self.denoise * noise, 1.5), np.float32)
        image = self._sharpened(image)
        if self.late:
            grain = rng.standard_normal((*image.shape[:2], 1 if self.grey else 3), dtype=np.float32)
            image = image + np.float32(self.late) * grain
        pixels = np.asarray(quantise(image), np.uint8)
        if self.quality is not None:
            _, buffer = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            pixels = np.asarray(cv2.imdecode(buffer, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
        return pixels

    def _colored(self, light: FloatArray) -> FloatArray:
        if not self.grey:
            return light
        luminance = light @ np.array([0.25, 0.6, 0.15], np.float32)
        return np.repeat(luminance[..., None], 3, axis=2)

    def _toned(self, light: FloatArray) -> FloatArray:
        light = np.clip(light, 0, 1)
        if not self.encoded:
            light = linear_to_srgb(light) if self.gamma is None else light ** np.float32(self.gamma)
        curve = light * light * (3 - 2 * light)
        return np.asarray(light + np.float32(self.contrast) * (curve - light), np.float32)

    def _sharpened(self, image: FloatArray) -> FloatArray:
        if not self.sharpen:
            return image
        return np.asarray(image + np.float32(self.sharpen) * (image - cv2.GaussianBlur(image, (0, 0), 1.0)), np.float32)

    def _noise(self, rng: np.random.Generator, light: FloatArray) -> FloatArray:
        if not (self.shot or self.read):
            return np.zeros((), np.float32)
        gains = np.array(self.balance, np.float32)
        variance = np.maximum(light, 0) * gains * np.float32(self.shot) + (gains * np.float32(self.read)) ** 2
        shape = (*light.shape[:2], 1 if self.grey else 3)
        noise: NDArray[Any] = np.sqrt(variance) * rng.standard_normal(shape, dtype=np.float32)
        if self.mosaic and not self.grey:
            noise = _demosaiced(noise)
        if self.grain:
            noise = cv2.GaussianBlur(noise, (0, 0), self.grain)
        return noise


def _demosaiced(image: FloatArray) -> FloatArray:
    """``(h, w, 3)`` from a Bayer mosaic of it (RGGB), whose missing values are interpolated bilinearly."""
    seen = np.zeros_like(image)
    seen[::2, ::2, 0] = seen[1::2, ::2, 1] = seen[::2, 1::2, 1] = seen[1::2, 1::2, 2] = 1
    tent = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32)
    filled, weight = (cv2.filter2D(channels, -1, tent) for channels in (image * seen, seen))
    return np.where(seen > 0, image, filled / weight)


def random_camera(rng: np.random.Generator) -> Camera:
    """Draws a camera; one in four has no noise of its own."""

    def sometimes(share: float, value: float) -> float:
        return value if rng.random() < share else 0.0

    noisy = rng.random() < 0.75
    return Camera(
        shot=float(10 ** rng.uniform(-5.5, -3.3)) if noisy else 0.0,
        read=float(10 ** rng.uniform(-4, -2.6)) if noisy else 0.0,
        balance=(float(rng.uniform(1, 2.2)), 1.0, float(rng.uniform(1, 2.2))) if rng.random() < 0.5 else (1, 1, 1),
        mosaic=rng.random() < 0.35,
        grain=sometimes(0.3, float(rng.uniform(0.3, 0.8))),
        encoded=rng.random() < 0.12,
        gamma=float(1 / rng.uniform(1.8, 2.4)) if rng.random() < 0.3 else None,
        contrast=sometimes(0.4, float(rng.uniform(-0.3, 0.6))),
        denoise=sometimes(0.12, float(rng.uniform(1, 3))),
        sharpen=sometimes(0.2, float(rng.uniform(0.1, 0.6))),
        late=sometimes(0.25, float(rng.uniform(0, 5 / 255))),
        quality=int(rng.integers(75, 99)) if rng.random() < 0.25 else None,
        exposure=sometimes(0.5, float(rng.normal(0, 0.02))),
        shading=sometimes(0.4, float(rng.normal(0, 0.03))),
        grey=rng.random() < 0.12,
    )
