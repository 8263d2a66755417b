"""The paper's times of one inference (Section 4.1), and when a measurement may be compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.results import Report
from benchmarks.latency.contenders import TORCH
from ldp_export.evaluation.paper import INFERENCE_DEVICE, load

PAPER_ROWS = {"small": "Ours (Small)", "large": "Ours (Large)"}
"""Name of a network's config -> its row in the paper's tables."""

ASSUMED_SHAPE = (1120, 1680)
"""Height and width of the images of DPD-blur. The paper states neither the size nor the precision of its times."""

_CAVEAT = (
    f"the paper's time is for one {INFERENCE_DEVICE} and states neither image size nor precision; "
    f"{ASSUMED_SHAPE[0]}x{ASSUMED_SHAPE[1]} is assumed"
)


@dataclass(frozen=True)
class Verdict:
    """A measurement beside the paper's time.

    Attributes:
        text: The comparison in words, or why there is none.
        ratio: Our median over the paper's time; None where the comparison does not apply.
    """

    text: str
    ratio: float | None = None


def verdict(
    network: str, shape: tuple[int, int], seconds: float | None, on: str, what: str, *, own_gpu_path: bool
) -> Verdict:
    """Compares a time with the paper's, where that is valid.

    Args:
        network: Name of the network's config.
        shape: Height and width of the image in px.
        seconds: Median of our time; None where there is none.
        on: Name of the measured device, from its driver or the system.
        what: Which time it is, for the text: "on the device, without copies".
        own_gpu_path: A backend ran on the GPU; else on a CPU.
    """
    if network not in PAPER_ROWS:
        return Verdict(f"the comparison with the paper does not apply to {network}: the paper times small and large")
    paper = load("inference").find(PAPER_ROWS[network]).values["seconds"]
    if not own_gpu_path:
        return Verdict(f"the comparison with the paper's {paper} s does not apply on a CPU ({on}): {_CAVEAT}")
    if not is_paper_gpu(on):
        return Verdict(f"the comparison with the paper's {paper} s does not apply on {on}: {_CAVEAT}")
    if shape != ASSUMED_SHAPE:
        return Verdict(
            f"the comparison with the paper's {paper} s does not apply to {shape[0]}x{shape[1]} px: {_CAVEAT}"
        )
    if seconds is None:
        return Verdict(f"there is no time {what} on {on} to compare with the paper's {paper} s")
    ratio = seconds / paper
    word = "faster than or as fast as" if ratio <= 1 else "slower than"
    return Verdict(
        f"{network} at {shape[0]}x{shape[1]} px takes {seconds:.4f} s {what} on {on}: {word} the paper's {paper} s "
        f"({ratio:.2f} times as long); {_CAVEAT}",
        ratio,
    )


def is_paper_gpu(name: str) -> bool:
    """Whether a driver's name of a GPU is that of the paper's desktop GPU."""
    words = name.upper().replace("GEFORCE", "").replace("NVIDIA", "").split()
    return words == INFERENCE_DEVICE.split()


def verdicts(report: Report) -> list[Verdict]:
    """Compares a report with the paper: a verdict per GPU backend and time, or one that says why there is none.

    Args:
        report: Of kind "latency".
    """
    network, gpus = str(report.data["network"]), report.machine["gpus"]
    found = []
    for series in report.data["series"]:
        shape = (int(series["shape"][0]), int(series["shape"][1]))
        own = [c for c in series["configurations"] if c["gpu"] and c["error"] is None and c["backend"] not in TORCH]
        for configuration in own:
            on = gpus[0]["name"] if gpus else configuration["runs_on"]
            for what, key in (("on the device, without copies", "device"), ("with both copies", "device_and_copies")):
                value = configuration[key] and configuration[key]["median"]
                what = f"{what}, by {configuration['name']}"
                found.append(verdict(network, shape, value, on, what, own_gpu_path=True))
        if not own:
            on = str(report.machine["cpu"]["name"])
            found.append(verdict(network, shape, None, on, "", own_gpu_path=False))
    return found
