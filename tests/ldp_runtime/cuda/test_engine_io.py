"""Engines made ready and checked, on engines that run nothing."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda.base import Engine
from ldp_runtime.cuda.engine_io import ReadyEngines
from ldp_runtime.errors import BundleError
from ldp_runtime.tensors import TensorSpec

PLAN: Any = SimpleNamespace(
    batch=2,
    tiles=SimpleNamespace(tile=(32, 48)),
    windows=SimpleNamespace(rows=SimpleNamespace(window=4)),
    clip_shapes={"stereo": (2, 3, 64, 128), "center": (2, 3, 64, 64)},
    deblur_shapes={"pair": (1, 6, 32, 48), "blur_logits": (1, 1, 4, 6)},
)
TABLE: Any = SimpleNamespace(channels=8)
SHAPES = {"stereo_features": (2, 4, 8, 8), "center_features": (2, 4, 4, 8)}


def specs(dtypes: Mapping[str, type]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, ("?",), np.dtype(dtype)) for name, dtype in dtypes.items())


def an_engine(inputs: Mapping[str, type], outputs: Mapping[str, type], shapes: Mapping[str, tuple[int, ...]]) -> Engine:
    """An engine whose context says what shapes it was asked for."""

    def context(asked: Mapping[str, tuple[int, ...]]) -> Any:
        return SimpleNamespace(outputs={name: shapes[name] for name in outputs}, asked=dict(asked), scratch=len(inputs))

    engine: Any = SimpleNamespace(
        inputs=specs(inputs), outputs=specs(outputs), context=context, channels_last=frozenset()
    )
    return engine  # type: ignore[no-any-return]


def clip(inputs: Mapping[str, type], outputs: Mapping[str, type], **shapes: tuple[int, ...]) -> Engine:
    return an_engine(inputs, outputs, {**SHAPES, "features": (), **shapes})


def deblur(restored: tuple[int, ...], **dtypes: type) -> Engine:
    inputs = {"pair": np.float32, "blur_logits": np.float32, **dtypes}
    return an_engine(inputs, {"restored": np.float32}, {"restored": restored})


HALVES = {"stereo": np.float16, "center": np.float16}
SINGLES = {"stereo_features": np.float32, "center_features": np.float32}
GOOD = deblur((1, 3, 32, 48))
HEAD = an_engine({"pair": np.float32}, {"x": np.float16}, {"x": (1, 16, 8, 12)})
TAIL = deblur((1, 3, 32, 48), x=np.float16)


def channels_last(engine: Engine, *names: str) -> Any:
    return SimpleNamespace(**{**vars(engine), "channels_last": frozenset(names)})


def test_dtypes_are_those_of_clip() -> None:
    for engines in ([GOOD], []):
        ready = ReadyEngines.open(PLAN, TABLE, clip(HALVES, SINGLES), engines)
        assert (ready.canvas_dtype, ready.feature_dtype) == (np.float16, np.float32)
        assert (ready.head, ready.maps) == (None, {})
    ready = ReadyEngines.open(PLAN, None, None, [GOOD])
    assert (ready.clip, ready.canvas_dtype, ready.feature_dtype) == (None, np.float32, np.float32)


def test_what_follows_a_head_takes_its_maps() -> None:
    ready: Any = ReadyEngines.open(PLAN, TABLE, clip(HALVES, SINGLES), [HEAD, TAIL])
    assert ready.maps == {"x": 2 * 16 * 8 * 12}
    assert ready.head.asked == {"pair": (1, 6, 32, 48)}
    assert ready.deblur.asked == {**PLAN.deblur_shapes, "x": (1, 16, 8, 12)}
    assert ready.scratch == {"clip": 2, "head": 1, "deblur": 3}


@pytest.mark.parametrize(
    ("encoder", "engines", "message"),
    [
        (
            clip({**HALVES, "center": np.float32}, SINGLES),
            [GOOD],
            "CLIP's inputs center, stereo, all of float16 or all",
        ),
        (clip(HALVES, {"features": np.float32}), [GOOD], "CLIP's outputs center_features, stereo_features"),
        (clip(HALVES, dict.fromkeys(SINGLES, np.int32)), [GOOD], "CLIP's outputs .* int32"),
        (clip(HALVES, SINGLES, center_features=(2, 4, 4, 9)), [GOOD], r"center_features \(2, 4, 4, 8\) .* 9\)"),
        (
            None,
            [deblur((1, 3, 32, 48), pair=np.float16)],
            "blur_logits in float32, pair in float32, restored in float32",
        ),
        (None, [deblur((1, 3, 32, 48), noise=np.float32)], "the deblur engine's .* noise"),
        (None, [deblur((1, 2, 32, 48))], r"restored \(1, 3, 32, 48\) of its engine, got \(1, 2, 32, 48\)"),
        (None, [HEAD, GOOD], "the deblur engine's .* x in float16, got"),
        (None, [HEAD, deblur((1, 3, 32, 48), x=np.float32)], "the deblur engine's .* x in float16, got .* x "),
        (None, [TAIL, GOOD], "the deblur engine's head's pair in float32, restored in float32, got .* blur_logits"),
    ],
)
def test_engines_of_another_chain_are_refused(encoder: Engine | None, engines: list[Engine], message: str) -> None:
    with pytest.raises(BundleError, match=f"expected .*{message}"):
        ReadyEngines.open(PLAN, TABLE, encoder, engines)


def test_maps_lie_in_memory_as_the_other_part_reads_them() -> None:
    encoder = clip(HALVES, SINGLES)
    ReadyEngines.open(PLAN, TABLE, encoder, [channels_last(HEAD, "x"), channels_last(TAIL, "x")])
    for engines, message in (
        ([channels_last(HEAD, "x"), TAIL], "the deblur engine with x channels last, got nothing; export"),
        ([HEAD, channels_last(TAIL, "x")], "the deblur engine with nothing channels last, got x; export"),
        ([channels_last(HEAD, "pair"), TAIL], "the deblur engine's head with nothing channels last, got pair; export"),
        ([channels_last(GOOD, "restored")], "the deblur engine with nothing channels last, got restored; export"),
    ):
        with pytest.raises(BundleError, match=f"expected {message}"):
            ReadyEngines.open(PLAN, TABLE, encoder, engines)
    with pytest.raises(BundleError, match="expected CLIP with nothing channels last, got stereo; export"):
        ReadyEngines.open(PLAN, TABLE, channels_last(encoder, "stereo"), [GOOD])
