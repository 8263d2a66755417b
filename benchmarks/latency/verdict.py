"""The paper's times of one inference (Section 4.1), and when a measurement may be compared with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldp_export.evaluation.paper import INFERENCE_DEVICE, load

PAPER_ROWS = {"small": "Ours (Small)", "large": "Ours (Large)"}
"""Name of a network's config -> what the paper's tables call it."""

ASSUMED_SHAPE = (1120, 1680)
"""Height and width of the images of DPD-blur. The paper states neither the size nor the precision of its times."""

_CAVEAT = (
    f"the paper's time is for one {INFERENCE_DEVICE} and states neither image size nor precision; "
    f"{ASSUMED_SHAPE[0]}x{ASSUMED_SHAPE[1]} is assumed"
)


@dataclass(frozen=True)
class Verdict:
    """What a measurement says about the paper's time.

    Attributes:
        applies: The comparison may be made.
        faster: Our median is at most the paper's time; None where the comparison does not apply.
        ratio: Our median over the paper's time; None where the comparison does not apply.
        text: The same in words.
    """

    applies: bool
    faster: bool | None
    ratio: float | None
    text: str


def verdict(
    network: str, shape: tuple[int, int], seconds: float | None, on: str, what: str, *, own_gpu_path: bool
) -> Verdict:
    """Compares with the paper, where that can be done.

    Args:
        network: Name of the network's config.
        shape: Height and width of the image in px.
        seconds: Median of our time; None where there is none.
        on: Name of the device that it was measured on, as its driver or the system gives it.
        what: Which time it is, for the text: "on the device, without copies".
        own_gpu_path: The time is that of a backend on the GPU; else that of a CPU.
    """
    if network not in PAPER_ROWS:
        return _none(f"the comparison with the paper does not apply to {network}: the paper times small and large")
    paper = load("inference").find(PAPER_ROWS[network]).values["seconds"]
    if not own_gpu_path:
        return _none(f"the comparison with the paper's {paper} s does not apply on a CPU ({on}): {_CAVEAT}")
    if not is_paper_gpu(on):
        return _none(f"the comparison with the paper's {paper} s does not apply on {on}: {_CAVEAT}")
    if shape != ASSUMED_SHAPE:
        return _none(f"the comparison with the paper's {paper} s does not apply to {shape[0]}x{shape[1]} px: {_CAVEAT}")
    if seconds is None:
        return _none(f"there is no time {what} on {on} to compare with the paper's {paper} s")
    ratio = seconds / paper
    word = "faster than or as fast as" if ratio <= 1 else "slower than"
    return Verdict(
        True,
        ratio <= 1,
        ratio,
        f"{network} at {shape[0]}x{shape[1]} px takes {seconds:.4f} s {what} on {on}: {word} the paper's {paper} s "
        f"({ratio:.2f} times as long); {_CAVEAT}",
    )


def is_paper_gpu(name: str) -> bool:
    """Whether a driver's name of a card is that of the desktop card which the paper used."""
    words = name.upper().replace("GEFORCE", "").replace("NVIDIA", "").split()
    return words == INFERENCE_DEVICE.split()


def as_json(of: Verdict) -> Mapping[str, Any]:
    """A verdict as plain JSON values."""
    return {"applies": of.applies, "faster": of.faster, "ratio": of.ratio, "text": of.text}


def _none(text: str) -> Verdict:
    return Verdict(False, None, None, text)
