"""What stands in for TensorRT's engines, so that the chain runs on cards and hosts that have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import EngineFile, Shape
from ldp_runtime.chain import ChainBackend
from ldp_runtime.cuda.base import Device, Engine, EngineContext, Stream
from ldp_runtime.cuda.chain import CudaChain
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.tensors import TensorSpec
from tests.ldp_runtime.cuda.host_device import OrtEngine, OrtSource

_SCRATCH = 4096

Shapes = Mapping[str, Shape]

MakeContext = Callable[[Device, OrtEngine, Shapes, Shapes], EngineContext]
"""Makes the context of an engine for shapes of its inputs, which are those of its outputs too."""


class Computed(EngineContext):
    """ONNX Runtime on the host between two copies that are waited for: slow, never captured, right."""

    def __init__(self, device: Device, engine: OrtEngine, shapes: Shapes, outputs: Shapes) -> None:
        self._device, self._engine, self._shapes = device, engine, shapes
        self.outputs, self.scratch = outputs, _SCRATCH

    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        feeds = {}
        for spec in self._engine.inputs:
            shape = self._shapes[spec.name]
            size = _nbytes(spec, shape)
            staged = self._device.allocate_host(size)
            stream.copy(staged.address, addresses[spec.name], size)
            stream.sync()
            feeds[spec.name] = staged.array[:size].view(spec.dtype).reshape(shape).copy()
        values = self._engine.session.run([spec.name for spec in self._engine.outputs], feeds)
        for spec, value in zip(self._engine.outputs, values, strict=True):
            staged = self._device.allocate_host(value.nbytes)
            staged.array[: value.nbytes] = np.ascontiguousarray(value).view(np.uint8).ravel()
            stream.copy(addresses[spec.name], staged.address, value.nbytes)
            stream.sync()

    def capturable(self, stream: Stream) -> bool:
        return False

    def ran(self) -> None:
        pass


class Copied(EngineContext):
    """Copies on the device alone, so that it can be captured: the restored image is the left view.

    Features are the first bytes of each canvas, which differ from window to window. Where the deblur graph is in two
    parts, the left view goes through the largest map between them.
    """

    def __init__(self, device: Device, engine: OrtEngine, shapes: Shapes, outputs: Shapes) -> None:
        self.outputs, self.scratch = outputs, _SCRATCH
        sizes = {
            spec.name: _nbytes(spec, {**shapes, **outputs}[spec.name][1:]) for spec in (*engine.inputs, *engine.outputs)
        }
        left_view = max(shapes.keys() - {"pair", "blur_logits"}, key=lambda name: sizes[name], default="pair")
        sources = {name: name.removesuffix("_features") if name.endswith("_features") else "pair" for name in outputs}
        sources |= {"restored": left_view} if "restored" in outputs else {}
        self._pieces = {output: (source, sizes[output], sizes[source]) for output, source in sources.items()}
        assert all(size <= pitch for _, size, pitch in self._pieces.values())

    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        for output, (source, size, pitch) in self._pieces.items():
            stream.copy_rows(addresses[output], size, addresses[source], pitch, size, self.outputs[output][0])

    def capturable(self, stream: Stream) -> bool:
        return True

    def ran(self) -> None:
        pass


class _Engine(Engine):
    def __init__(
        self, device: Device, engine: OrtEngine, make: MakeContext, maps: Mapping[str, tuple[int, int]]
    ) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._device, self._engine, self._make, self._maps = device, engine, make, maps

    def context(self, shapes: Shapes) -> EngineContext:
        """Shapes of outputs: the batch is the inputs', and a restored image and maps follow the pair."""
        batch = next(iter(shapes.values()))[0]
        outputs: dict[str, Shape] = {}
        for spec in self.outputs:
            sides = spec.shape[1:]
            if spec.name == "restored":
                sides = (3, *shapes["pair"][2:])
            elif spec.name in self._maps:
                channels, stride = self._maps[spec.name]
                sides = (channels, *(side // stride for side in shapes["pair"][2:]))
            outputs[spec.name] = (batch, *map(int, sides))
        return self._make(self._device, self._engine, shapes, outputs)


class _Source(OrtSource):
    def __init__(self, bundle: Bundle, device: Device, make: MakeContext, folder: Path | None) -> None:
        super().__init__(bundle, "fp16", folder=folder)
        self._device, self._make = device, make

    def open(self, file: EngineFile) -> Engine:
        engine = super().open(file)
        assert isinstance(engine, OrtEngine)
        return _Engine(self._device, engine, self._make, self.maps)


class _Backend(ChainBackend):
    name = "stand-in"
    precisions = ("fp16",)

    def __init__(self, device: Device, make: MakeContext, folder: Path | None) -> None:
        self._device, self._make, self._folder = device, make, folder

    def available(self) -> None:
        pass

    def describe(self) -> str:
        return self._device.name

    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> CudaChain:
        source = _Source(bundle, self._device, self._make, self._folder)
        return CudaChain(self.name, self._device, bundle, source, precision, tile)


def deblurrer_on(device: Device, bundle: Bundle, make: MakeContext, folder: Path | None = None) -> Deblurrer:
    """A deblurrer whose chain is the CUDA chain on a device, with stand-ins for the engines.

    Args:
        device: The device.
        bundle: The bundle.
        make: The stand-in, ``Computed`` or ``Copied``.
        folder: Where the two parts of the deblur graph go; None leaves it whole.
    """
    return Deblurrer(bundle, backend=_Backend(device, make, folder))


def _nbytes(spec: TensorSpec, shape: Shape) -> int:
    return int(np.prod(shape)) * spec.dtype.itemsize
