"""How a bundle is served: the options of ``ldp-export triton``, checked."""

from __future__ import annotations

from dataclasses import dataclass

from ldp_runtime.backends.base import PRECISIONS
from ldp_runtime.bundle.engines import ENGINE_PRECISION
from ldp_runtime.errors import LDPError
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.tiles import AUTO

VARIANTS = {
    "python": "one model in the Python backend that runs everything",
    "onnxruntime": "the graphs as models of the ONNX Runtime backend",
    "tensorrt": "the bundle's engines as models of the TensorRT backend",
}
"""What runs the graphs."""

VERSION = "1"
"""The version of every model, which names its folder."""

MODELS = {8: "ldp", 16: "ldp_uint16"}
"""Name of the model that clients call, by the bits of its images."""


class TritonError(LDPError):
    """A model repository cannot be written as asked."""


@dataclass(frozen=True)
class Serving:
    """How a bundle is served.

    Attributes:
        variant: A name of ``VARIANTS``.
        bits: Depths of the images, each a model of its own.
        instances: Processes of each model that clients call.
        max_batch: Pairs that one of these takes at a time, at most.
        max_delay: Microseconds that a request may wait for others to share a batch with.
        max_queue: Requests that may wait; further ones are refused at once.
        backend: With the variant "python", what runs the graphs there.
        precision: Precision of the graphs; "auto" is the backend's own, FP32 with ONNX Runtime, FP16 with TensorRT.
        threads: With the variant "python", CPU threads of a process; None leaves it to the backend.
        pair_check: ``check`` of ``Deblurrer.from_bundle``.
        scale: As for ``Deblurrer.from_bundle``.
        tile: As for ``Deblurrer.from_bundle``; with the variant "tensorrt" "auto" is what the engine takes.
        openvino: With the variant "onnxruntime", OpenVINO executes the graphs on the CPU.
        warm_up: Height and width in px of a pair that is restored before a model counts as ready.
    """

    variant: str = "python"
    bits: tuple[int, ...] = (8,)
    instances: int = 1
    max_batch: int = 8
    max_delay: int = 0
    max_queue: int = 64
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    tile: int | str = AUTO
    pair_check: str = "off"
    scale: str = AUTO
    openvino: bool = False
    warm_up: tuple[int, int] = (256, 256)

    def check(self) -> None:
        """Checks the options by themselves and together.

        Raises:
            TritonError: One is wrong, or two do not fit together.
        """
        for name, value, choices in (
            ("variant", self.variant, tuple(VARIANTS)),
            ("backend", self.backend, ("auto", *BACKENDS)),
            ("precision", self.precision, ("auto", *PRECISIONS)),
        ):
            if value not in choices:
                raise TritonError(f"expected a {name}, one of {', '.join(choices)}, got {value!r}")
        if not self.bits or set(self.bits) - MODELS.keys():
            raise TritonError(f"expected bits, of {', '.join(map(str, MODELS))}, got {self.bits}")
        for name, number, least in (
            ("instances", self.instances, 1),
            ("pairs per batch", self.max_batch, 1),
            ("a delay in microseconds", self.max_delay, 0),
            ("requests that may wait", self.max_queue, 1),
            ("threads", 1 if self.threads is None else self.threads, 1),
            ("the sides of the warm-up in px", min(self.warm_up), 1),
        ):
            if number < least:
                raise TritonError(f"expected {name} of at least {least}, got {number}")
        if self.variant != "python" and (self.backend != "auto" or self.threads is not None):
            raise TritonError(
                f"expected a backend and threads with the variant python alone, got them with {self.variant}; leave "
                "them out, or edit instance_group and parameters of the written configs"
            )
        if self.openvino and self.variant != "onnxruntime":
            raise TritonError(f"expected OpenVINO with the variant onnxruntime, got it with {self.variant}")
        if self.variant == "onnxruntime" and self.precision == "bf16":
            raise TritonError("expected fp32 or fp16 with the variant onnxruntime, got bf16; choose fp32")
        if self.variant == "tensorrt" and self.precision not in ("auto", ENGINE_PRECISION):
            raise TritonError(f"expected {ENGINE_PRECISION}, that of engines, got {self.precision}; leave it out")

    @property
    def models(self) -> list[str]:
        """Names of the models that clients call."""
        return [MODELS[bits] for bits in dict.fromkeys(self.bits)]
