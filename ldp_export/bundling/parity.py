"""The parity check: do the exported graphs compute what the network computes in torch?

Everything is compared on one probe, a simulated pair of the motorcycle scene, cut to 256 x 384 px where the weights are
random or imported: those networks take long. The graphs run in ONNX Runtime on the CPU. What the figures mean:

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldp_export.evaluation.estimators import pad_pair
from ldp_export.evaluation.reference import TorchDeblurrer
from ldp_export.model import ExportModel
from ldp_export.network.published.base import PublishedNetwork
from ldp_export.simulation.samples import MOTORCYCLE, focus_setting
from ldp_runtime.backends.base import Session
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import SESSION_BACKENDS
from ldp_runtime.selftest import FP16_LIMIT_DB, FP32_LIMIT

TARGET_LIMIT_DB = 0.01
SMALL_PROBE = (256, 384)
ACTIVATION_LIMIT = 32752.0
"""Half of the largest number of FP16."""


@dataclass(frozen=True)
class Parity:
    """The outcome of a check.

    Attributes:
        figures: For the manifest: plain JSON values, with the gates among them.
        failures: One line per failed gate; empty when the check passed.
        fp32_failures: Those of them that the FP16 graphs alone do not explain.
    """

    figures: Mapping[str, Any]
    failures: tuple[str, ...]
    fp32_failures: tuple[str, ...]


def measure(
    model: ExportModel,
    graphs: Mapping[str, Mapping[str, Path]],
    report: Callable[[str], None] = lambda line: None,
) -> Parity:
    """Compares a bundle's graphs with the modules that they were exported from.

    Args:
        model: What was exported.
        graphs: ``{"clip" | "deblur": {"fp32" | "fp16": file}}``; no "clip" where the network reads no blur map.
        report: As for ``export_bundle``.

    Returns:
        The figures, and the gates that failed.
    """
    reference = TorchDeblurrer(model, device="cpu")
    estimator = reference.estimator
    sample = focus_setting(MOTORCYCLE.focus[0])
    ours = not isinstance(model.network, PublishedNetwork)
    size = h, w = sample.coc.shape if model.trained and model.origin is None else SMALL_PROBE
    views = [torch.from_numpy(view[:h, :w]) for view in (sample.left, sample.right)]
    target = sample.target[:h, :w].transpose(2, 0, 1) / np.float32(255)

    def session(kind: str, precision: str) -> Session:
        return SESSION_BACKENDS["onnxruntime"].open(graphs[kind][precision], precision)

    def difference(a: NDArray[Any] | Tensor, b: NDArray[Any] | Tensor | None) -> float:
        return float(np.abs(np.asarray(a) - np.asarray(b)).max())

    def restored_by_graph(precision: str, logits: Tensor | None) -> NDArray[np.float32]:
        feeds = {name: tensor.numpy() for name, tensor in reference.network_inputs(pair, logits).items()}
        return session("deblur", precision).run(feeds)["restored"].astype(np.float32)

    report("parity: torch")
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
    of_fp32: set[str] = set()  # names of gates

    def check(what: str, value: float, limit: float, at_most: bool, *, fp32: bool) -> None:
        passed = value <= limit if at_most else value >= limit  # False for NaN
        gates.append(gate(what, value, limit, at_most=at_most, passed=passed))
        if fp32:
            of_fp32.add(what)

    restored_by = {"torch_fp32": restored}
    for precision in ("fp32", "fp16"):
        report(f"parity: {precision}")
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
                check("clip fp32 max abs", error, FP32_LIMIT, at_most=True, fp32=True)
        for what, image in images.items():
            if precision == "fp32":
                figures[what]["fp32_max_abs"] = _plain(difference(image, restored))
            figures[what][f"{precision}_psnr_db"] = _plain(psnr(image, restored, data_range=1))
        if precision == "fp32":
            error = _number(figures["deblur"]["fp32_max_abs"])
            check("deblur fp32 max abs", error, FP32_LIMIT, at_most=True, fp32=True)
        else:
            for what in images:
                decibel = _number(figures[what]["fp16_psnr_db"])
                check(f"{what} fp16 PSNR in dB", decibel, FP16_LIMIT_DB, at_most=False, fp32=False)
    if ours:
        figures["deblur"]["half_psnr_db"] = _plain(psnr(half, restored, data_range=1))
        decibel = _number(figures["deblur"]["half_psnr_db"])
        check("deblur half PSNR in dB", decibel, FP16_LIMIT_DB, at_most=False, fp32=False)
    else:
        figures["deblur"]["largest_activation"] = _plain(max(largest))
        check("deblur largest activation", max(largest), ACTIVATION_LIMIT, at_most=True, fp32=False)

    if model.trained:
        to_target = {
            name: psnr(np.clip(image[0, :, :h, :w], 0, 1), target, data_range=1) for name, image in restored_by.items()
        }
        deltas = {name: abs(value - to_target["torch_fp32"]) for name, value in to_target.items()}
        delta = max(deltas.values())
        figures["target"] = {f"{name}_psnr_db": _plain(value) for name, value in to_target.items()}
        figures["target"]["delta_db"] = _plain(delta)
        fp32_fails = not deltas["graph_fp32"] <= TARGET_LIMIT_DB
        check("difference in PSNR to the target in dB", delta, TARGET_LIMIT_DB, at_most=True, fp32=fp32_fails)
    else:
        figures["target"] = "not applicable: the weights are random"
    figures["gates"] = gates
    failures = {
        g["name"]: f"{g['name']}: expected {g['is']} {g['limit']}, got {g['value']}" for g in gates if not g["passed"]
    }
    return Parity(figures, (*failures.values(),), tuple(line for name, line in failures.items() if name in of_fp32))


def gate(name: str, value: float | None, limit: float, *, at_most: bool, passed: bool) -> dict[str, Any]:
    """A gate of the figures in a manifest, as plain JSON values; one that is not finite becomes None."""
    found = None if value is None else _plain(value)
    return {"name": name, "value": found, "limit": limit, "is": "at most" if at_most else "at least", "passed": passed}


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
