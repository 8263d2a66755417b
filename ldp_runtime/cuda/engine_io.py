"""The check that engines are those of a bundle: their tensors' names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldp_runtime.bundle.engines import Shape, feature_shapes
from ldp_runtime.cuda.base import Engine, EngineContext
from ldp_runtime.cuda.plan import Plan
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.errors import BundleError
from ldp_runtime.tensors import TensorSpec

Opened = tuple[Engine, EngineContext]
"""An engine, and its context for the shapes of a plan."""

_FIX = "export the bundle again with ldp-export onnx and build its engines again"
_FLOATS = {np.dtype(np.float16), np.dtype(np.float32)}


def check_io(
    plan: Plan, table: PromptTable | None, clip: Opened | None, deblur: Opened | None
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Checks the inputs and outputs of engines.

    Args:
        plan: The sizes.
        table: The bundle's prompts; None where the network reads no blur map.
        clip: CLIP's engine; None where there is none.
        deblur: The deblur engine; None where the blur map alone is wanted.

    Returns:
        The dtypes of CLIP's inputs and outputs; float32 where there is no CLIP.

    Raises:
        BundleError: They are those of another chain.
    """
    shapes: dict[str, Shape] = {"restored": (1, 3, *plan.tiles.tile)}
    if table is not None and plan.windows is not None:
        shapes |= feature_shapes(plan.batch, plan.windows.rows.window, table.channels, plan.clip_shapes)
    dtypes = np.dtype(np.float32), np.dtype(np.float32)
    if clip is not None:
        engine, context = clip
        features = {f"{name}_features" for name in plan.clip_shapes}
        inputs = _clip_dtype("CLIP's inputs", engine.inputs, {*plan.clip_shapes})
        dtypes = inputs, _clip_dtype("CLIP's outputs", engine.outputs, features)
        _check_shapes(context, shapes)
    if deblur is not None:
        engine, context = deblur
        expected, specs = {*plan.deblur_shapes, "restored"}, engine.inputs + engine.outputs
        if {spec.name for spec in specs} != expected or any(spec.dtype != np.float32 for spec in specs):
            raise BundleError(
                f"expected the deblur engine's {', '.join(sorted(expected))} in float32, got "
                f"{', '.join(map(str, specs))}; {_FIX}"
            )
        _check_shapes(context, shapes)
    return dtypes


def _clip_dtype(what: str, specs: Sequence[TensorSpec], names: set[str]) -> np.dtype[Any]:
    dtypes = {spec.dtype for spec in specs}
    if {spec.name for spec in specs} != names or len(dtypes) != 1 or not dtypes <= _FLOATS:
        raise BundleError(
            f"expected {what} {', '.join(sorted(names))}, all of float16 or all of float32, got "
            f"{', '.join(map(str, specs))}; {_FIX}"
        )
    return dtypes.pop()


def _check_shapes(context: EngineContext, expected: Mapping[str, Shape]) -> None:
    for name, shape in context.outputs.items():
        if tuple(shape) != expected[name]:
            raise BundleError(f"expected {name} {expected[name]} of its engine, got {tuple(shape)}; {_FIX}")
