"""What stands in for TensorRT's engines, so that the chain runs on cards and hosts that have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

MakeContext = Callable[[Device, OrtEngine, Mapping[str, Shape]], EngineContext]


class Computed(EngineContext):
    """ONNX Runtime on the host between two copies that are waited for: slow, never captured, right."""

    def __init__(self, device: Device, engine: OrtEngine, shapes: Mapping[str, Shape]) -> None:
        self._device, self._engine, self._shapes = device, engine, shapes
        self.outputs, self.scratch = _outputs(engine, shapes), _SCRATCH

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

    Features are the first bytes of each canvas, which differ from window to window.
    """

    def __init__(self, device: Device, engine: OrtEngine, shapes: Mapping[str, Shape]) -> None:
        self.outputs, self.scratch = _outputs(engine, shapes), _SCRATCH
        names = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
        self._pieces = {
            output: (source, *(_nbytes(names[name], shape[1:]) for name, shape in ((output, made), (source, taken))))
            for output, made in self.outputs.items()
            for source, taken in shapes.items()
            if source == {"restored": "pair"}.get(output, output.removesuffix("_features"))
        }
        assert all(size <= pitch for _, size, pitch in self._pieces.values())

    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        for output, (source, size, pitch) in self._pieces.items():
            stream.copy_rows(addresses[output], size, addresses[source], pitch, size, self.outputs[output][0])

    def capturable(self, stream: Stream) -> bool:
        return True

    def ran(self) -> None:
        pass


class _Engine(Engine):
    def __init__(self, device: Device, engine: OrtEngine, make: MakeContext) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._device, self._engine, self._make = device, engine, make

    def context(self, shapes: Mapping[str, Shape]) -> EngineContext:
        return self._make(self._device, self._engine, shapes)


class _Source(OrtSource):
    def __init__(self, bundle: Bundle, device: Device, make: MakeContext) -> None:
        super().__init__(bundle, "fp16")
        self._device, self._make = device, make

    def open(self, file: EngineFile) -> Engine:
        engine = super().open(file)
        assert isinstance(engine, OrtEngine)
        return _Engine(self._device, engine, self._make)


class _Backend(ChainBackend):
    name = "stand-in"
    precisions = ("fp16",)

    def __init__(self, device: Device, make: MakeContext) -> None:
        self._device, self._make = device, make

    def available(self) -> None:
        pass

    def describe(self) -> str:
        return self._device.name

    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> CudaChain:
        source = _Source(bundle, self._device, self._make)
        return CudaChain(self.name, self._device, bundle, source, precision, tile)


def deblurrer_on(device: Device, bundle: Bundle, make: MakeContext) -> Deblurrer:
    """A deblurrer whose chain is the CUDA chain on a device, with stand-ins for the engines."""
    return Deblurrer(bundle, backend=_Backend(device, make))


def _outputs(engine: OrtEngine, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of an engine's outputs: the batch is the inputs', and a restored image has the size of its pair."""
    batch = next(iter(shapes.values()))[0]
    if "pair" in shapes:
        return {"restored": (batch, 3, *shapes["pair"][2:])}
    return {spec.name: (batch, *(int(side) for side in spec.shape[1:])) for spec in engine.outputs}


def _nbytes(spec: TensorSpec, shape: Shape) -> int:
    return int(np.prod(shape)) * spec.dtype.itemsize
