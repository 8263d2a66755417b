from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.roofline.chain import Chain, Step, build_chain, floor
from benchmarks.roofline.hardware import gpus
from ldp_runtime.bundle.bundle import Bundle


def test_the_chain_has_all_stages_in_order(chain: Chain) -> None:
    assert list(dict.fromkeys(step.stage for step in chain.steps)) == [
        "prepare",
        "clip",
        "blur_logits",
        "deblur",
        "finish",
    ]
    assert chain.padded == (128, 160)
    assert all(step.nbytes() > 0 for step in chain.steps)


def test_the_own_kernels_move_at_least_pixels_in_and_out(chain: Chain) -> None:
    (h, w), (H, W) = chain.size, chain.padded
    steps = {step.stage: step for step in chain.steps if step.kind == "cuda"}
    assert steps["prepare"].nbytes() >= 6 * h * w + 24 * H * W
    assert steps["finish"].nbytes() >= 12 * h * w + 3 * h * w
    assert steps["blur_logits"].nbytes() >= 4 * (H // 16) * (W // 16)


def test_clip_runs_once_a_batch(nano_bundle: Bundle) -> None:
    large = build_chain(nano_bundle, (1120, 1680), "fp16")
    assert large.windows > 64 and large.batches > 1
    assert {step.repeats for step in large.steps if step.stage == "clip"} == {large.batches}
    assert {step.repeats for step in large.steps if step.stage != "clip"} == {1}


def test_the_floor_of_a_chain_is_the_sum_over_its_kernels(chain: Chain) -> None:
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
    assert floor(chain.steps, card, cached=True) <= by_hand <= floor(chain.unfused, card)
    assert floor(chain.steps, replace(card, bandwidth=card.bandwidth / 2)) > 1.5 * by_hand  # bound by memory


def test_a_cache_holds_tensors_whole_or_not_at_all() -> None:
    step = Step("deblur", "matrix", "", (1,), 0, 0, ((100, 0), (40, 80), (60, 60)))
    assert [step.nbytes(cache) for cache in (0, 59, 60, 79, 80)] == [200, 200, 140, 140, 100]
