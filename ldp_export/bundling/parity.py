"""The parity check: do the exported graphs compute what the network computes in torch?

Everything is compared on one probe, a simulated pair of the motorcycle scene, cut to 256 x 384 px where the weights are
random. The graphs run in ONNX Runtime on the CPU. What the figures mean:

* ``fp32_max_abs`` of the deblur graph: largest absolute difference of the restored image, whose unit is the full scale;
* ``fp32_max_abs`` of the CLIP graph: largest absolute difference of the features, both divided by the root mean square
  of torch's features, so that they have unit scale;
* ``fp16_psnr_db``: PSNR of the FP16 graph's restored image against torch's in FP32, the peak being the full scale. For
  ``deblur`` both get the same blur logits, for ``chain`` those of the FP16 CLIP graph and of torch's CLIP in FP32;
* ``half_psnr_db``: the same for torch's network in half precision, in true half arithmetic: a runtime on a CPU may
  compute FP16 nodes in FP32, which hides an overflow;
* ``target_delta_db``: largest difference in PSNR to the target between a graph and torch in FP32. It means something
  for trained weights only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldp_export.blur_map import blur_logits, center_view, stereo_canvas
from ldp_export.simulation.samples import MOTORCYCLE, focus_setting
from ldp_runtime.backends import BACKENDS
from ldp_runtime.backends.base import Session
from ldp_runtime.images.quality import psnr
from ldp_runtime.stages.blur_map import select_prompts, upsample_map
from ldp_runtime.stages.geometry import WindowGrid, pad_reflect
from ldp_runtime.stages.patch_blur_map import cut_patches, map_logits, patch_values, stretch

if TYPE_CHECKING:
    from ldp_export.bundling.model import ExportModel
    from ldp_export.clip import PatchEncoder, WindowEncoder

FP32_LIMIT = 1e-4
FP16_LIMIT_DB = 50.0
TARGET_LIMIT_DB = 0.01
RANDOM_PROBE = (256, 384)


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """The outcome of a check.

    Attributes:
        figures: For the manifest: plain JSON values, with the gates among them.
        failures: One line a failed gate; empty when the check passed.
    """

    figures: Mapping[str, Any]
    failures: tuple[str, ...]


def measure(
    model: ExportModel, encoder: WindowEncoder | PatchEncoder, texts: Floats, graphs: Mapping[str, Mapping[str, Path]]
) -> Parity:
    """Compares a bundle's graphs with the modules that they were exported from.

    Args:
        model: What was exported.
        encoder: Its CLIP on windows or patches, FP32.
        texts: Text embeddings, one a prompt ``(prompts, c)``, unit length.
        graphs: ``{"clip" | "deblur": {"fp32" | "fp16": file}}``.

    Returns:
        The figures, and the gates that failed.
    """
    probe = _Probe.of(model)
    onnxruntime = BACKENDS["onnxruntime"]

    def session(kind: str, precision: str) -> Session:
        return onnxruntime.open(graphs[kind][precision], precision)

    with torch.inference_mode():
        features = encoder(*probe.feeds.values())
        features = features if isinstance(features, tuple) else (features,)
        logits = probe.logits(model, features, texts)
        restored = _restore(model.network, probe.pair, probe.blur(model, logits))
        half = _restore(copy.deepcopy(model.network).half(), probe.pair, probe.blur(model, logits))
    reference = [feature.numpy() for feature in features]

    figures: dict[str, Any] = {
        "weights": "trained" if model.trained else "random",
        "probe": probe.description,
        "deblur": {},
        "clip": {},
        "chain": {},
    }
    gates: list[dict[str, Any]] = []

    def gate(what: str, value: float, limit: float, at_most: bool) -> None:
        passed = value <= limit if at_most else value >= limit  # False for NaN
        gates.append(
            {"name": what, "value": _plain(value), "limit": limit, "is": "at most" if at_most else "at least"}
            | {"passed": passed}
        )

    restored_by = {"torch_fp32": restored}
    graph_logits = {}
    for precision in ("fp32", "fp16"):
        run = session("clip", precision)
        dtypes = {spec.name: spec.dtype for spec in run.inputs}
        got = run.run({name: feed.numpy().astype(dtypes[name]) for name, feed in probe.feeds.items()})
        arrays = [got[spec.name].astype(np.float32) for spec in run.outputs]
        error = max(float(np.abs(a - r).max() / _rms(r)) for a, r in zip(arrays, reference, strict=True))
        graph_logits[precision] = probe.logits(model, [torch.from_numpy(a) for a in arrays], texts)
        figures["clip"][f"{precision}_max_abs"] = _plain(error)
        figures["clip"][f"{precision}_logits_max_abs"] = _plain(float(np.abs(graph_logits[precision] - logits).max()))
        if precision == "fp32":
            gate("clip fp32 max abs", error, FP32_LIMIT, at_most=True)

        run = session("deblur", precision)
        for what, used in (("deblur", logits), ("chain", graph_logits[precision])):
            feeds = {"pair": probe.pair.numpy(), f"blur_{model.blur_map.network_input}": probe.blur(model, used)}
            image = run.run(feeds)["restored"].astype(np.float32)
            if what == "deblur":
                restored_by[f"graph_{precision}"] = image
            if precision == "fp32":
                figures[what]["fp32_max_abs"] = _plain(float(np.abs(image - restored).max()))
            figures[what][f"{precision}_psnr_db"] = _plain(psnr(image, restored, data_range=1))
        if precision == "fp32":
            gate("deblur fp32 max abs", _number(figures["deblur"]["fp32_max_abs"]), FP32_LIMIT, at_most=True)
        else:
            for what in ("deblur", "chain"):
                gate(f"{what} fp16 PSNR in dB", _number(figures[what]["fp16_psnr_db"]), FP16_LIMIT_DB, at_most=False)
    figures["deblur"]["half_psnr_db"] = _plain(psnr(half, restored, data_range=1))
    gate("deblur half PSNR in dB", _number(figures["deblur"]["half_psnr_db"]), FP16_LIMIT_DB, at_most=False)

    if model.trained:
        to_target = {name: psnr(probe.crop(image), probe.target, data_range=1) for name, image in restored_by.items()}
        delta = max(abs(value - to_target["torch_fp32"]) for value in to_target.values())
        figures["target"] = {f"{name}_psnr_db": _plain(value) for name, value in to_target.items()}
        figures["target"]["delta_db"] = _plain(delta)
        gate("difference in PSNR to the target in dB", delta, TARGET_LIMIT_DB, at_most=True)
    else:
        figures["target"] = "not applicable: the weights are random"
    figures["gates"] = gates
    failures = [f"{g['name']}: expected {g['is']} {g['limit']}, got {g['value']}" for g in gates if not g["passed"]]
    return Parity(figures, tuple(failures))


@dataclass(frozen=True)
class _Probe:
    """The pair that is compared on, ready for both graphs.

    Attributes:
        description: What it is.
        pair: ``(1, 6, H, W)`` float32 in [0, 1], padded.
        feeds: The inputs of the CLIP graph, in the order of its encoder's.
        grid: The windows, or the rows and columns of patches.
        target: ``(3, h, w)`` float32 in [0, 1], not padded.
    """

    description: str
    pair: Tensor
    feeds: Mapping[str, Tensor]
    grid: WindowGrid | tuple[int, int]
    target: Floats

    @classmethod
    def of(cls, model: ExportModel) -> _Probe:
        sample = focus_setting(MOTORCYCLE.focus[0])
        h, w = sample.coc.shape if model.trained else RANDOM_PROBE
        left, right, target = (
            view[:h, :w].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            for view in (sample.left, sample.right, sample.target)
        )
        description = f"motorcycle, {MOTORCYCLE.focus[0]} focus, {h} x {w} px"
        H, W = (-(-side // model.multiple) * model.multiple for side in (h, w))
        padded = pad_reflect(np.concatenate([left, right]), (H, W))
        if model.blur_map.patch is not None:
            patches = cut_patches(np.concatenate([left, right]), model.blur_map.patch)
            feeds = {"patches": torch.from_numpy(patches).flatten(0, 1)}
            rows, columns = patches.shape[:2]
            return cls(description, torch.from_numpy(padded)[None], feeds, (rows, columns), target)
        patch, side = model.clip.encoder.patch, model.windows.window
        grid = WindowGrid.cover(H, W, window=side, overlap=model.windows.overlap, patch=patch)
        source = torch.from_numpy(pad_reflect(padded, (grid.rows.grid * patch, grid.columns.grid * patch)))
        mean, std = (torch.tensor(values).repeat(2)[:, None, None] for values in (model.clip.mean, model.clip.std))
        source = (source - mean) / std
        regions = torch.stack(
            [source[:, y * patch : y * patch + side, x * patch : x * patch + side] for y, x in grid.origins()]
        )
        views = regions[:, :3], regions[:, 3:]
        return cls(
            description,
            torch.from_numpy(padded)[None],
            {"stereo": stereo_canvas(*views), "center": center_view(*views)},
            grid,
            target,
        )

    def logits(self, model: ExportModel, features: tuple[Tensor, ...] | list[Tensor], texts: Floats) -> Floats:
        """Blur logits ``(1, 1, H / p, W / p)`` of the windows' features, or one a patch."""
        if not isinstance(self.grid, WindowGrid):
            values = patch_values(features[0].numpy(), texts, model.prompts[0])
            return map_logits(stretch(values.reshape(self.grid)))[None, None]
        chosen = select_prompts(model.prompts, model.network.config.ensemble)
        prompts = [model.prompts[k] for k in chosen]
        windows = blur_logits(
            features[0],
            features[1],
            torch.from_numpy(texts[chosen]),
            [prompt.format == "dp-aware" for prompt in prompts],
            torch.tensor([prompt.offset for prompt in prompts]),
            torch.tensor([prompt.temperature for prompt in prompts]),
        )
        patch = model.clip.encoder.patch
        rows, columns = (side // patch for side in self.pair.shape[2:])
        blended = self.grid.blend(windows[:, 0].numpy())[:rows, :columns]
        return np.ascontiguousarray(blended)[None, None]

    def blur(self, model: ExportModel, logits: Floats) -> Floats:
        """The second input of the deblur graph, made of blur logits ``(1, 1, rows, columns)``."""
        if model.blur_map.network_input == "logits":
            return logits
        height, width = self.pair.shape[2:]
        cell = model.blur_map.patch or model.clip.encoder.patch
        return upsample_map(logits[0, 0], (height, width), cell)[None, None]

    def crop(self, restored: Floats) -> Floats:
        """A restored image without its padding, clamped: ``(3, h, w)``."""
        return np.clip(restored[0, :, : self.target.shape[1], : self.target.shape[2]], 0, 1)


def _restore(network: nn.Module, pair: Tensor, blur: Floats) -> Floats:
    restored: Floats = network(pair, torch.from_numpy(blur)).numpy()
    return restored


def _rms(values: Floats) -> float:
    return math.sqrt(float(np.mean(np.square(values, dtype=np.float64))))


def _plain(value: float) -> float | None:
    """A figure for JSON: five digits; None where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
