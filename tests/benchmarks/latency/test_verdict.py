import pytest

from benchmarks.latency.verdict import ASSUMED_SHAPE, is_paper_gpu, verdict

CARD = "NVIDIA GeForce RTX 4090"


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", True),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("NVIDIA GeForce RTX 4090 D", False),
        ("NVIDIA GeForce RTX 4080", False),
        ("NVIDIA H100 80GB HBM3", False),
        ("AMD EPYC", False),
    ],
)
def test_which_card_the_paper_used(name: str, same: bool) -> None:
    assert is_paper_gpu(name) is same


@pytest.mark.parametrize(
    ("network", "seconds", "faster"), [("small", 0.03, True), ("small", 0.05, False), ("large", 0.05, True)]
)
def test_on_the_papers_card_the_times_are_compared(network: str, seconds: float, faster: bool) -> None:
    found = verdict(network, ASSUMED_SHAPE, seconds, CARD, "on the device", own_gpu_path=True)
    paper = {"small": 0.042, "large": 0.054}[network]
    assert found.ratio == pytest.approx(seconds / paper)
    assert CARD in found.text
    assert f"{paper} s" in found.text
    assert ("slower than" in found.text, found.ratio <= 1) == (not faster, faster)
    assert "states neither image size nor precision" in found.text


@pytest.mark.parametrize(
    ("network", "shape", "on", "gpu", "words"),
    [
        ("small", ASSUMED_SHAPE, "NVIDIA H100 80GB HBM3", True, "does not apply on NVIDIA H100"),
        ("small", ASSUMED_SHAPE, "AMD EPYC", False, r"does not apply on a CPU \(AMD EPYC\)"),
        ("small", (560, 840), CARD, True, "does not apply to 560x840"),
        ("nano", ASSUMED_SHAPE, CARD, True, "does not apply to nano"),
    ],
)
def test_anywhere_else_the_comparison_does_not_apply(
    network: str, shape: tuple[int, int], on: str, gpu: bool, words: str
) -> None:
    import re

    found = verdict(network, shape, 0.001, on, "on the device", own_gpu_path=gpu)
    assert re.search(words, found.text)
    assert found.ratio is None


def test_no_time_is_no_verdict() -> None:
    found = verdict("small", ASSUMED_SHAPE, None, CARD, "on the device", own_gpu_path=True)
    assert found.ratio is None
    assert "there is no time on the device" in found.text
