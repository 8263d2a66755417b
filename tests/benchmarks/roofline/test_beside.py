"""The deblur graph in two, and the bounds of what a second stream could gain."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.roofline.beside import Beside, build_beside, cut
from benchmarks.roofline.chain import Chain, Step, floor
from benchmarks.roofline.hardware import Device, gpus
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import deblur_shapes

H, W = 128, 160
MAPS = [(1, 64, 80, 32), (1, 32, 40, 64), (1, 16, 20, 128)]  # of nano's three levels, before its one BPA block
DEVICE = Device("toy", "fp16", matrix=100.0, vector=10.0, bandwidth=1.0, cache=50, link=1.0, measured=False)


def a_step(matrix: int, nbytes: int, repeats: int = 1, whole: int = 0) -> Step:
    return Step("deblur", "", (1,), matrix, 0, ((nbytes, whole),), repeats)


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_both_parts_compute_what_the_whole_does(nano_bundle: Bundle, tmp_path: Path) -> None:
    graph, shapes = nano_bundle.graph("deblur", "fp16"), deblur_shapes(H, W, 16)
    parts = cut(graph, shapes, tmp_path)
    assert parts.crossing == sum(2 * int(np.prod(shape)) for shape in MAPS)
    rng = np.random.default_rng(0)
    feeds = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    feeds["blur_logits"] = 20 * feeds["blur_logits"] - 10
    maps = run(parts.head, {"pair": feeds["pair"]})
    assert sorted(value.shape for value in maps.values()) == sorted(MAPS)
    assert {name: value.shape for name, value in (feeds | maps).items()} == parts.shapes[parts.tail]
    (whole,), (joined,) = run(graph, feeds).values(), run(parts.tail, feeds | maps).values()
    np.testing.assert_allclose(joined, whole, atol=1e-3)
    other = run(graph, feeds | {"blur_logits": -feeds["blur_logits"]})["restored"]
    assert np.abs(whole - other).max() > 4e-3, "the logits make no difference"


def test_the_bounds_by_hand() -> None:
    matrix, memory = a_step(200, 1, repeats=2), a_step(0, 3)
    beside = Beside((a_step(0, 5),), (matrix,), (memory,), (a_step(100, 7),), 0)
    assert beside.apart(DEVICE) == pytest.approx(5 + 2 * 2 + 3 + 7)
    assert beside.together(DEVICE) == pytest.approx(5 + max(400 / 100, 2 + 3) + 7)
    twice = Beside((), (memory,), (memory,), (), 0)  # both bound by memory: nothing to gain
    assert twice.together(DEVICE) == twice.apart(DEVICE) == 6
    held = Beside((), (matrix,), (a_step(0, 3, whole=3),), (), 0)
    assert (held.together(DEVICE), held.together(DEVICE, cached=True)) == (5, 4)


def test_the_bounds_of_nano(chain: Chain, nano_bundle: Bundle) -> None:
    beside = build_beside(nano_bundle, chain)
    whole = [step for step in chain.steps if step.stage == "deblur"]
    for part in (beside.head, beside.tail):
        assert 0 < sum(step.matrix_flops for step in part) < sum(step.matrix_flops for step in whole)
    parts = (*beside.head, *beside.tail)
    assert sum(step.matrix_flops for step in parts) == pytest.approx(sum(step.matrix_flops for step in whole), rel=0.02)
    card = gpus()[0]
    assert beside.apart(card) == pytest.approx(floor(chain.steps, card), rel=0.2)
    assert beside.apart(card) - beside.together(card) <= min(floor(part, card) for part in (beside.clip, beside.head))
