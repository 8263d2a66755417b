from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.results import BenchmarkError
from benchmarks.roofline.chain import Chain, Step, _planned, floor, floor_beside, walk_graphs
from benchmarks.roofline.hardware import Device, gpus
from ldp_runtime.bundle.bundle import Bundle

LAYER = (
    "Name: {name}, LayerType: {type}, Inputs: [ {{ Name: {read}, Dimensions: [1,4,8], Datatype: Half, Format: x }}], "
    "Constants: [], Outputs: [ {{ Name: {write}, Dimensions: [1,2,8], Datatype: Float, Format: x }}], TacticName: t, "
    "StreamId: 0, Metadata: {nodes}"
)


def test_the_chain_has_all_stages_in_order(chain: Chain) -> None:
    stages = list(dict.fromkeys(step.stage for step in chain.steps))
    assert stages == ["prepare", "clip", "blur_logits", "head", "deblur", "finish"]
    assert chain.padded == (128, 160)
    assert all(step.nbytes() > 0 for step in chain.steps)
    assert chain.plan.startswith("TensorRT-RTX ") and chain.plan.endswith(" for sm_89")
    assert chain.copied == (6 * 100 * 150, 7 * 100 * 150 + 4 * 8 * 10)
    H, W = chain.padded
    assert chain.crossing == sum(2 * H * W // s**2 * c for s, c in ((2, 32), (4, 64), (8, 128)))  # of nano's levels


def test_the_own_kernels_move_at_least_pixels_in_and_out(chain: Chain) -> None:
    (h, w), (H, W) = chain.size, chain.padded
    moved = {step.stage: step.nbytes() for step in chain.steps if step.kind == "cuda"}
    assert moved["prepare"] >= 6 * h * w + 24 * H * W
    assert moved["finish"] >= 12 * h * w + 3 * h * w
    assert moved["blur_logits"] >= 4 * (H // 16) * (W // 16)


def test_layers_compute_what_the_graphs_do(chain: Chain, nano_bundle: Bundle) -> None:
    walked = walk_graphs(nano_bundle, chain.size, "fp16")
    for stages, cost in ((["clip"], walked.clip), (["head", "deblur"], walked.deblur)):
        layers = [step for step in chain.steps if step.stage in stages]
        assert sum(step.matrix_flops for step in layers) == pytest.approx(cost.matrix_flops, rel=0.01)
        assert 0 < sum(step.vector_flops for step in layers) <= 1.01 * cost.vector_flops  # windows are made again


def test_clip_runs_once_per_batch(nano_bundle: Bundle) -> None:
    walked = walk_graphs(nano_bundle, (1120, 1680), "fp16")
    assert len(walked.grid) > 64
    assert walked.batches * walked.shapes["clip"]["stereo"][0] >= len(walked.grid)


def test_the_floor_of_a_chain_is_the_sum_over_its_launches(chain: Chain) -> None:
    card = gpus()[0]
    by_hand = sum(
        step.repeats
        * max(
            step.matrix_flops / card.matrix,
            step.vector_flops / card.vector,
            sum(size for size, _ in step.traffic) / card.bandwidth,
        )
        for step in chain.steps
    )
    assert floor(chain.steps, card) == pytest.approx(by_hand)
    assert floor(chain.steps, card, cached=True) < by_hand
    assert floor(chain.steps, replace(card, bandwidth=card.bandwidth / 2)) > 1.5 * by_hand  # bound by memory


def a_step(stage: str, matrix: int, nbytes: int, repeats: int = 1, whole: int = 0) -> Step:
    return Step(stage, "", (1,), matrix, 0, ((nbytes, whole),), repeats)


def test_the_floor_with_clip_beside_the_head_by_hand() -> None:
    device = Device("toy", "fp16", matrix=100.0, vector=10.0, bandwidth=1.0, cache=50, link=1.0, measured=False)
    matrix, memory = a_step("clip", 200, 1, repeats=2), a_step("head", 0, 3)
    steps = [a_step("prepare", 0, 5), matrix, memory, a_step("deblur", 100, 7)]
    assert floor(steps, device) == pytest.approx(5 + 2 * 2 + 3 + 7)
    assert floor_beside(steps, device) == pytest.approx(5 + max(400 / 100, 2 + 3) + 7)
    both = [a_step("clip", 0, 3), memory]  # both bound by memory: nothing to gain
    assert floor_beside(both, device) == floor(both, device) == 6
    held = [matrix, a_step("head", 0, 3, whole=3)]
    assert (floor_beside(held, device), floor_beside(held, device, cached=True)) == (5, 4)


def test_clip_beside_the_head_saves_at_most_the_shorter_of_both(chain: Chain) -> None:
    card = gpus()[0]
    clip = floor((step for step in chain.steps if step.stage in ("clip", "blur_logits")), card)
    head = floor((step for step in chain.steps if step.stage == "head"), card)
    assert 0 <= floor(chain.steps, card) - floor_beside(chain.steps, card) <= min(clip, head)


def test_a_cache_holds_tensors_whole_or_not_at_all() -> None:
    step = Step("deblur", "", (1,), 0, 0, ((100, 0), (40, 40), (60, 60)))
    assert [step.nbytes(cache) for cache in (0, 39, 40, 59, 60)] == [200, 200, 160, 160, 100]


def test_layers_are_read_from_the_report(nano_bundle: Bundle) -> None:
    cost = walk_graphs(nano_bundle, (100, 150), "fp16").deblur
    nodes = "".join(f"[ONNX Layer: {node.name}]" for node in cost.nodes)
    first = LAYER.format(name="__myl_MulAdd_myl0_3", type="kgen", read="pair", write="a", nodes=nodes)
    second = LAYER.format(name="conv_myl0_4", type="correlation", read="a", write="restored", nodes=nodes)
    signal = LAYER.format(name="s", type="signal", read="a", write="a", nodes="")
    one, other = _planned("deblur", Path("g.onnx"), [first, signal, second], cost)
    assert (one.kind, one.matrix_flops, one.vector_flops) == ("MulAdd", cost.matrix_flops, cost.vector_flops)
    assert (other.kind, other.matrix_flops, other.shape) == ("correlation", 0, (1, 2, 8))
    assert one.traffic == ((64, 0), (64, 64))  # what the other layer reads may stay in a cache
    assert other.traffic == ((64, 64), (64, 0))
    with pytest.raises(BenchmarkError, match=r"matrix GFLOP, got 0\.0; its report has changed"):
        _planned("deblur", Path("g.onnx"), [first.replace("ONNX Layer", "Node")], cost)
