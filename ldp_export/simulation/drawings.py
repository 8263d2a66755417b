"""Drawn textures for training scenes: what photographs have too little of, all of it sharp."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Draw = Callable[[], tuple[float, ...]]
"""Draws a colour."""

_FONTS = 8


def random_drawing(rng: np.random.Generator, side: int, colors: NDArray[np.uint8]) -> Pixels:
    """A drawing ``(side, side, 3)``: leaves that hide each other, a printed page, brickwork, or signs on a ground.

    Args:
        rng: Source of all draws.
        side: In px.
        colors: ``(n, 3)`` to draw with, besides random ones.
    """

    def color() -> tuple[float, ...]:
        chosen = colors[rng.integers(len(colors))] if rng.random() < 0.8 else rng.integers(0, 256, 3)
        return tuple(float(c) for c in chosen)

    canvas: Pixels = np.full((side, side, 3), color(), dtype=np.uint8)
    draw = (_draw_leaves, _draw_page, _draw_bricks, _draw_signs)[rng.choice(4, p=[0.4, 0.25, 0.1, 0.25])]
    draw(rng, canvas, color)
    return canvas


def _draw_leaves(rng: np.random.Generator, canvas: Pixels, color: Draw) -> None:
    """Shapes of all sizes, as many in each octave as cover it alike: the statistics of natural images."""
    side, smallest = canvas.shape[0], rng.uniform(1.5, 4)
    for _ in range(int(rng.integers(200, 1500))):
        radius = smallest * (1 - rng.random() * (1 - (smallest / 80) ** 2)) ** -0.5
        middle, turn = rng.uniform(0, side, 2), float(rng.uniform(0, 180))
        if rng.random() < 0.5:
            axes = radius * rng.uniform(0.4, 1, 2)
            points = cv2.ellipse2Poly(
                (0, 0), (max(1, round(axes[0] * 8)), max(1, round(axes[1] * 8))), int(turn), 0, 360, 20
            )
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
            points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * 8
        cv2.fillPoly(canvas, [np.rint(points + middle * 8).astype(np.int32)], color(), cv2.LINE_AA, 3)


def _draw_page(rng: np.random.Generator, canvas: Pixels, color: Draw) -> None:
    side, size, font = canvas.shape[0], float(rng.uniform(0.25, 1.4)), int(rng.integers(_FONTS))
    ink = color()
    line = round(size * rng.uniform(26, 40))
    for y in range(int(rng.integers(line)), side + line, line):
        words = ("".join(chr(c) for c in rng.integers(97, 123, int(rng.integers(2, 10)))) for _ in range(12))
        text = " ".join(word.capitalize() if rng.random() < 0.2 else word for word in words)
        cv2.putText(
            canvas, text, (int(rng.integers(-30, 20)), y), font, size, ink, max(1, round(size * 1.5)), cv2.LINE_AA
        )
    if rng.random() < 0.5:
        matrix = cv2.getRotationMatrix2D(
            (side / 2, side / 2), float(rng.uniform(-40, 40)), float(rng.uniform(0.8, 1.3))
        )
        canvas[:] = cv2.warpAffine(
            canvas, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101
        )


def _draw_bricks(rng: np.random.Generator, canvas: Pixels, color: Draw) -> None:
    side, height = canvas.shape[0], int(rng.integers(5, 40))
    width, joint = round(height * rng.uniform(1, 4)), max(1, round(height * rng.uniform(0.05, 0.25)))
    base = np.array(color())
    for row, y in enumerate(range(-int(rng.integers(height)), side, height)):
        for x in range(-(row % 2) * (width // 2) - int(rng.integers(3)), side, width):
            shade = np.clip(base * rng.uniform(0.75, 1.25) + rng.normal(0, 6, 3), 0, 255)
            cv2.rectangle(canvas, (x, y), (x + width - joint - 1, y + height - joint - 1), shade.tolist(), -1)
    grain = rng.normal(0, rng.uniform(0, 12), canvas.shape[:2])[..., None]
    canvas[:] = np.clip(canvas + grain, 0, 255).astype(np.uint8)


def _draw_signs(rng: np.random.Generator, canvas: Pixels, color: Draw) -> None:
    side = canvas.shape[0]
    for _ in range(int(rng.integers(10, 60))):
        x0, y0, x1, y1 = (int(c) for c in rng.integers(0, side, 4))
        kind, ink = rng.integers(4), color()
        if kind == 0:
            text = "".join(chr(c) for c in rng.integers(33, 126, 8))
            size, thickness = float(rng.uniform(0.3, 1.2)), int(rng.integers(1, 3))
            cv2.putText(canvas, text, (x0, y0), int(rng.integers(_FONTS)), size, ink, thickness, cv2.LINE_AA)
        elif kind == 1:
            cv2.line(canvas, (x0, y0), (x1, y1), ink, int(rng.integers(1, 6)), cv2.LINE_AA)
        elif kind == 2:
            cv2.rectangle(canvas, (x0, y0), (x0 + (x1 - x0) // 4, y0 + (y1 - y0) // 4), ink, -1)
        else:
            cv2.circle(canvas, (x0, y0), int(rng.integers(1, 24)), ink, -1, cv2.LINE_AA)
