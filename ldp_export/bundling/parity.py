"""The parity check: do the exported graphs compute what the network computes in torch?

Everything is compared on one probe, a simulated pair of the motorcycle scene, cut to 256 x 384 px where the weights are
random or the network is another than LDP's. The graphs run in ONNX Runtime on the CPU. What the figures mean:

* ``fp32_max_abs`` of the deblur graph: largest absolute difference of the restored image, whose unit is the full scale;
* ``fp32_max_abs`` of the CLIP graph: largest absolute difference of the features, both divided by the root mean square
  of torch's features, so that they have unit scale;
* ``fp16_psnr_db``: PSNR of the FP16 graph's restored image against torch's in FP32, the peak being the full scale. For
  ``deblur`` both get the same blur logits, for ``chain`` those of the FP16 CLIP graph and of torch's CLIP in FP32;
* ``half_psnr_db``: the same for torch's network in half precision, in true half arithmetic: a runtime on a CPU may
  compute FP16 nodes in FP32, which hides an overflow;
* ``largest_activation``, in its place for other networks than LDP's, which half arithmetic on a CPU would take minutes
  to hours: the outputs of all layers in FP32 are held to the range of FP16;
* ``target_delta_db``: largest difference in PSNR to the target between a graph and torch in FP32. It means something
  for trained weights only.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldp_export.evaluation.reference import TorchDeblurrer, pad_pair
from ldp_export.model import ExportModel
from ldp_export.network.published.base import PublishedNetwork
from ldp_export.simulation.samples import MOTORCYCLE, focus_setting
from ldp_runtime.backends.base import Session
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import SESSION_BACKENDS

FP32_LIMIT = 1e-4
FP16_LIMIT_DB = 50.0
TARGET_LIMIT_DB = 0.01
RANDOM_PROBE = (256, 384)
ACTIVATION_LIMIT = 32752.0
"""Half of the largest number of FP16."""


@dataclass(frozen=True)
class Parity:
    """The outcome of a check.

    Attributes:
        figures: For the manifest: plain JSON values, with the gates among them.
        failures: One line per failed gate; empty when the check passed.
    """

    figures: Mapping[str, Any]
    failures: tuple[str, ...]


def measure(model: ExportModel, graphs: Mapping[str, Mapping[str, Path]]) -> Parity:
    """Compares a bundle's graphs with the modules that they were exported from.

    Args:
        model: What was exported.
        graphs: ``{"clip" | "deblur": {"fp32" | "fp16": file}}``; no "clip" where the network reads no blur map.

    Returns:
        The figures, and the gates that failed.
    """
    reference = TorchDeblurrer(model, device="cpu")
    estimator = reference.estimator
    sample = focus_setting(MOTORCYCLE.focus[0])
    ours = not isinstance(model.network, PublishedNetwork)
    size = h, w = sample.coc.shape if model.trained and ours else RANDOM_PROBE
    views = [torch.from_numpy(view[:h, :w]) for view in (sample.left, sample.right)]
    target = sample.target[:h, :w].transpose(2, 0, 1) / np.float32(255)

    def session(kind: str, precision: str) -> Session:
        return SESSION_BACKENDS["onnxruntime"].open(graphs[kind][precision], precision)

    def difference(a: NDArray[Any] | Tensor, b: NDArray[Any] | Tensor | None) -> float:
        return float(np.abs(np.asarray(a) - np.asarray(b)).max())

    def restored_by_graph(precision: str, logits: Tensor | None) -> NDArray[np.float32]:
        feeds = {name: tensor.numpy() for name, tensor in reference.network_inputs(pair, logits).items()}
        return session("deblur", precision).run(feeds)["restored"].astype(np.float32)

    with torch.inference_mode():
        pair = pad_pair(views, reference.padding)
        logits = None
        if estimator is not None:
            feeds = [torch.cat(parts) for parts in zip(*estimator.batches(pair, size), strict=True)]
            features = estimator.features(*feeds)
            logits = estimator.assemble(estimator.values(*features), pair.shape[1:], size)
        with _largest_activation(reference.network) as largest:
            restored = reference.restore(pair, logits).numpy()
        if ours:
            half = copy.deepcopy(model.network).half()(*reference.network_inputs(pair, logits).values()).numpy()

    figures: dict[str, Any] = {
        "weights": "trained" if model.trained else "random",
        "probe": f"motorcycle, {MOTORCYCLE.focus[0]} focus, {h} x {w} px",
        "deblur": {},
        **({} if estimator is None else {"clip": {}, "chain": {}}),
    }
    gates: list[dict[str, Any]] = []

    def gate(what: str, value: float, limit: float, at_most: bool) -> None:
        passed = value <= limit if at_most else value >= limit  # False for NaN
        gates.append(
            {"name": what, "value": _plain(value), "limit": limit, "is": "at most" if at_most else "at least"}
            | {"passed": passed}
        )

    restored_by = {"torch_fp32": restored}
    for precision in ("fp32", "fp16"):
        images = {"deblur": restored_by_graph(precision, logits)}
        restored_by[f"graph_{precision}"] = images["deblur"]
        if estimator is not None:
            run = session("clip", precision)
            got = run.run({i.name: feed.numpy().astype(i.dtype) for i, feed in zip(run.inputs, feeds, strict=True)})
            arrays = [got[spec.name].astype(np.float32) for spec in run.outputs]
            error = max(difference(a, f) / _rms(f.numpy()) for a, f in zip(arrays, features, strict=True))
            values = estimator.values(*map(torch.from_numpy, arrays))
            graph_logits = estimator.assemble(values, pair.shape[1:], size)
            figures["clip"][f"{precision}_max_abs"] = _plain(error)
            figures["clip"][f"{precision}_logits_max_abs"] = _plain(difference(graph_logits, logits))
            images["chain"] = restored_by_graph(precision, graph_logits)
            if precision == "fp32":
                gate("clip fp32 max abs", error, FP32_LIMIT, at_most=True)
        for what, image in images.items():
            if precision == "fp32":
                figures[what]["fp32_max_abs"] = _plain(difference(image, restored))
            figures[what][f"{precision}_psnr_db"] = _plain(psnr(image, restored, data_range=1))
        if precision == "fp32":
            gate("deblur fp32 max abs", _number(figures["deblur"]["fp32_max_abs"]), FP32_LIMIT, at_most=True)
        else:
            for what in images:
                gate(f"{what} fp16 PSNR in dB", _number(figures[what]["fp16_psnr_db"]), FP16_LIMIT_DB, at_most=False)
    if ours:
        figures["deblur"]["half_psnr_db"] = _plain(psnr(half, restored, data_range=1))
        gate("deblur half PSNR in dB", _number(figures["deblur"]["half_psnr_db"]), FP16_LIMIT_DB, at_most=False)
    else:
        figures["deblur"]["largest_activation"] = _plain(max(largest))
        gate("deblur largest activation", max(largest), ACTIVATION_LIMIT, at_most=True)

    if model.trained:
        to_target = {
            name: psnr(np.clip(image[0, :, :h, :w], 0, 1), target, data_range=1) for name, image in restored_by.items()
        }
        delta = max(abs(value - to_target["torch_fp32"]) for value in to_target.values())
        figures["target"] = {f"{name}_psnr_db": _plain(value) for name, value in to_target.items()}
        figures["target"]["delta_db"] = _plain(delta)
        gate("difference in PSNR to the target in dB", delta, TARGET_LIMIT_DB, at_most=True)
    else:
        figures["target"] = "not applicable: the weights are random"
    figures["gates"] = gates
    failures = [f"{g['name']}: expected {g['is']} {g['limit']}, got {g['value']}" for g in gates if not g["passed"]]
    return Parity(figures, tuple(failures))


@contextlib.contextmanager
def _largest_activation(network: nn.Module) -> Iterator[list[float]]:
    """The largest absolute output of each layer that is called within."""
    largest: list[float] = []

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
        largest.append(float(output.abs().max()))

    hooks = [layer.register_forward_hook(keep) for layer in network.modules() if not [*layer.children()]]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _rms(values: NDArray[np.float32]) -> float:
    return math.sqrt(float(np.mean(np.square(values, dtype=np.float64))))


def _plain(value: float) -> float | None:
    """A figure for JSON: five digits; None where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
