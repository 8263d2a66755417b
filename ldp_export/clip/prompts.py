"""The prompts of the paper's Table 4, in its order, and the opposites that train the stand-in CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BlurFormat = Literal["blur-aware", "dp-aware"]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the input that it is compared with.

    ``blur-aware`` prompts read the center view and are true where it is blurred; ``dp-aware`` prompts read the stereo
    canvas and are true where it is symmetrical, which is where the pair is sharp.
    """

    text: str
    format: BlurFormat


PROMPTS = (
    Prompt("A blurry image.", "blur-aware"),
    Prompt("An obscured image.", "blur-aware"),
    Prompt("An out of focus image.", "blur-aware"),
    Prompt("An image lacking sharpness.", "blur-aware"),
    Prompt("A symmetrical image.", "dp-aware"),
    Prompt("A horizontally symmetrical image.", "dp-aware"),
    Prompt("A left-right symmetrical image.", "dp-aware"),
    Prompt("A symmetrical image at the pixel level.", "dp-aware"),
)

OPPOSITES = (
    Prompt("A sharp image.", "blur-aware"),
    Prompt("A clear image.", "blur-aware"),
    Prompt("An image in focus.", "blur-aware"),
    Prompt("An image with crisp detail.", "blur-aware"),
    Prompt("An asymmetrical image.", "dp-aware"),
    Prompt("A horizontally asymmetrical image.", "dp-aware"),
    Prompt("An image whose left and right differ.", "dp-aware"),
    Prompt("An asymmetrical image at the pixel level.", "dp-aware"),
)
"""Captions that are true where the prompt of the same place is false; used to train ldp-nano's CLIP only."""
