"""The check of engines' tensors, on engines that run nothing."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda.engine_io import Opened, check_io
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


def clip(inputs: Mapping[str, type], outputs: Mapping[str, type], **shapes: tuple[int, ...]) -> Opened:
    engine: Any = SimpleNamespace(inputs=specs(inputs), outputs=specs(outputs))
    context: Any = SimpleNamespace(outputs={**SHAPES, **shapes})
    return engine, context


def deblur(restored: tuple[int, ...], **dtypes: type) -> Opened:
    inputs = {"pair": np.float32, "blur_logits": np.float32, **dtypes}
    engine: Any = SimpleNamespace(inputs=specs(inputs), outputs=specs({"restored": np.float32}))
    context: Any = SimpleNamespace(outputs={"restored": restored})
    return engine, context


HALVES = {"stereo": np.float16, "center": np.float16}
SINGLES = {"stereo_features": np.float32, "center_features": np.float32}
GOOD = deblur((1, 3, 32, 48))


def test_dtypes_are_those_of_clip() -> None:
    assert check_io(PLAN, TABLE, clip(HALVES, SINGLES), GOOD) == (np.float16, np.float32)
    assert check_io(PLAN, TABLE, clip(HALVES, SINGLES), None) == (np.float16, np.float32)
    assert check_io(PLAN, None, None, GOOD) == (np.float32, np.float32)


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (
            (clip({**HALVES, "center": np.float32}, SINGLES), GOOD),
            "CLIP's inputs center, stereo, all of float16 or all",
        ),
        ((clip(HALVES, {"features": np.float32}), GOOD), "CLIP's outputs center_features, stereo_features"),
        ((clip(HALVES, dict.fromkeys(SINGLES, np.int32)), GOOD), "CLIP's outputs .* int32"),
        ((clip(HALVES, SINGLES, center_features=(2, 4, 4, 9)), GOOD), r"center_features \(2, 4, 4, 8\) .* 9\)"),
        ((None, deblur((1, 3, 32, 48), pair=np.float16)), "blur_logits, pair, restored in float32"),
        ((None, deblur((1, 3, 32, 48), noise=np.float32)), "expected the deblur engine's .* noise"),
        ((None, deblur((1, 2, 32, 48))), r"restored \(1, 3, 32, 48\) of its engine, got \(1, 2, 32, 48\)"),
    ],
)
def test_engines_of_another_chain_are_refused(opened: tuple[Opened | None, Opened], message: str) -> None:
    with pytest.raises(BundleError, match=f"expected .*{message.removeprefix('expected ')}"):
        check_io(PLAN, TABLE, *opened)
