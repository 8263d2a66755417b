"""Engines ready for the shapes of a plan, and the check that they are those of one chain: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldp_runtime.bundle.engines import Shape, feature_shapes
from ldp_runtime.cuda.base import Engine, EngineContext
from ldp_runtime.cuda.plan import Plan, nbytes
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.cuda.slot import Streams
from ldp_runtime.errors import BundleError
from ldp_runtime.tensors import TensorSpec

_FIX = "export the bundle again with ldp-export onnx and build its engines again"
_SINGLE = np.dtype(np.float32)
_FLOATS = {np.dtype(np.float16), _SINGLE}


@dataclass(frozen=True)
class ReadyEngines:
    """The engines of a frame, ready for the shapes of a plan.

    Attributes:
        clip: CLIP; None where the network reads no blur map.
        head: What of the deblur graph needs no blur map; None where that is whole.
        deblur: The deblur graph, or what follows the head; None where the blur map alone is wanted.
        canvas_dtype: Of CLIP's inputs; float32 where there is no CLIP.
        feature_dtype: Of its outputs, likewise.
        maps: Bytes of each map from the head to the rest.
    """

    clip: EngineContext | None
    head: EngineContext | None
    deblur: EngineContext | None
    canvas_dtype: np.dtype[Any]
    feature_dtype: np.dtype[Any]
    maps: Mapping[str, int]

    @classmethod
    def open(cls, plan: Plan, table: PromptTable | None, clip: Engine | None, deblur: Sequence[Engine]) -> ReadyEngines:
        """Makes engines ready and checks that they are those of one chain.

        Args:
            plan: The sizes.
            table: The bundle's prompts; None where the network reads no blur map.
            clip: CLIP's engine; None where the network reads no blur map.
            deblur: The deblur engine, or its head and the rest; none where the blur map alone is wanted.

        Raises:
            BundleError: They are those of another chain.
            BackendError: They do not take the plan's shapes.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        head, last = (deblur[0] if len(deblur) > 1 else None), (deblur[-1] if deblur else None)
        clip_context = clip.context(plan.clip_shapes) if clip is not None else None
        pair = {"pair": plan.deblur_shapes["pair"]}
        head_context = head.context(pair) if head is not None else None
        shapes = head_context.outputs if head_context is not None else {}
        last_context = last.context({**plan.deblur_shapes, **shapes}) if last is not None else None
        expected: dict[str, Shape] = {"restored": (1, 3, *plan.tiles.tile)}
        if table is not None and plan.windows is not None:
            expected |= feature_shapes(plan.batch, plan.windows.rows.window, table.channels, plan.clip_shapes)
        canvas_dtype = feature_dtype = _SINGLE
        if clip is not None:
            canvas_dtype = _clip_dtype("CLIP's inputs", clip.inputs, {*plan.clip_shapes})
            feature_dtype = _clip_dtype(
                "CLIP's outputs", clip.outputs, {f"{name}_features" for name in plan.clip_shapes}
            )
        maps = {spec.name: spec.dtype for spec in head.outputs} if head is not None else {}
        if head is not None:
            _check_dtypes("deblur engine's head", head, {"pair": _SINGLE} | maps)
        if last is not None:
            _check_dtypes("deblur engine", last, dict.fromkeys((*plan.deblur_shapes, "restored"), _SINGLE) | maps)
        _check_layout("CLIP", clip, frozenset())
        shared = head.channels_last & maps.keys() if head is not None else frozenset()
        _check_layout("the deblur engine's head", head, shared)
        _check_layout("the deblur engine", last, shared)
        for context in (clip_context, last_context):
            if context is not None:
                _check_shapes(context, expected)
        sizes = {name: nbytes(shapes[name], dtype) for name, dtype in maps.items()}
        return cls(clip_context, head_context, last_context, canvas_dtype, feature_dtype, sizes)

    @property
    def scratch(self) -> dict[str, int]:
        """Bytes of scratch memory of each, by name."""
        return {name: context.scratch for name, context in self._contexts().items()}

    def capturable(self, streams: Streams) -> bool:
        """Whether all may become part of a graph."""
        on = {"head": streams.beside}
        return all(context.capturable(on.get(name, streams.compute)) for name, context in self._contexts().items())

    def ran(self) -> None:
        """Tells all that a first run is over."""
        for context in self._contexts().values():
            context.ran()

    def _contexts(self) -> dict[str, EngineContext]:
        every = {"clip": self.clip, "head": self.head, "deblur": self.deblur}
        return {name: context for name, context in every.items() if context is not None}


def _clip_dtype(what: str, specs: Sequence[TensorSpec], names: set[str]) -> np.dtype[Any]:
    dtypes = {spec.dtype for spec in specs}
    if {spec.name for spec in specs} != names or len(dtypes) != 1 or not dtypes <= _FLOATS:
        raise BundleError(
            f"expected {what} {', '.join(sorted(names))}, all of float16 or all of float32, got "
            f"{', '.join(map(str, specs))}; {_FIX}"
        )
    return dtypes.pop()


def _check_dtypes(what: str, engine: Engine, expected: Mapping[str, np.dtype[Any]]) -> None:
    specs = engine.inputs + engine.outputs
    if {spec.name: spec.dtype for spec in specs} != expected:
        wanted = ", ".join(f"{name} in {dtype}" for name, dtype in sorted(expected.items()))
        raise BundleError(f"expected the {what}'s {wanted}, got {', '.join(map(str, specs))}; {_FIX}")


def _check_layout(what: str, engine: Engine | None, channels_last: frozenset[str]) -> None:
    if engine is not None and engine.channels_last != channels_last:
        wanted, got = (", ".join(sorted(names)) or "nothing" for names in (channels_last, engine.channels_last))
        raise BundleError(f"expected {what} with {wanted} channels last, got {got}; {_FIX}")


def _check_shapes(context: EngineContext, expected: Mapping[str, Shape]) -> None:
    for name, shape in context.outputs.items():
        if tuple(shape) != expected[name]:
            raise BundleError(f"expected {name} {expected[name]} of its engine, got {tuple(shape)}; {_FIX}")
