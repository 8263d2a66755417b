"""The chain in torch: what the runtime is compared with must itself be right."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ldp_export.data.base import DataError
from ldp_export.evaluation.reference import LAYOUTS, TorchDeblurrer
from ldp_export.model import ExportModel
from ldp_runtime.bundle.bundle import read_manifest, write_manifest
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import NumericsError
from ldp_runtime.images.quality import psnr
from ldp_runtime.stages.blur_map import LOGIT_LIMIT
from tests.ldp_export.data.miniatures import noise


@pytest.fixture(scope="module")
def model(exported_model: ExportModel) -> ExportModel:
    """What the shared bundle was exported from, with prompts that vote apart."""
    prompts = [
        msgspec.structs.replace(prompt, offset=float(k), temperature=20.0 - 3 * k)
        for k, prompt in enumerate(exported_model.prompts)
    ]
    return replace(exported_model, prompts=tuple(prompts))


@pytest.fixture(scope="module")
def bundle(exported_bundle: Path, model: ExportModel, tmp_path_factory: pytest.TempPathFactory) -> Deblurrer:
    """The shared bundle with the model's prompts, on the runtime."""
    folder = shutil.copytree(exported_bundle, tmp_path_factory.mktemp("reference") / "bundle")
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), prompts=model.prompts))
    return Deblurrer.from_bundle(folder, backend="onnxruntime", precision="fp32", threads=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(90, 131), (5, 3)])
def test_it_restores_what_the_runtime_restores(
    bundle: Deblurrer, model: ExportModel, layout: str, dtype: type, size: tuple[int, int]
) -> None:
    left, right = (noise((*size, 3), seed, dtype) for seed in (1, 2))
    expected, got = bundle(left, right), TorchDeblurrer(model, layout=layout, device="cpu")(left, right)
    assert got.restored.dtype == dtype and got.restored.shape == left.shape
    tolerance = 1 if dtype == np.uint8 else 8  # of 65535: FP32 arithmetic in another order
    assert np.abs(got.restored.astype(np.int64) - expected.restored).max() <= tolerance
    assert np.ptp(got.restored) > 0
    assert got.blur_logits == pytest.approx(expected.blur_logits, abs=1e-3)
    assert np.abs(got.blur_logits).max() < LOGIT_LIMIT
    assert np.ptp(got.blur_logits) > 0.1 or size == (5, 3)
    assert got.blur_map == pytest.approx(expected.blur_map, abs=1e-3)
    assert got.timings.keys() == {"prepare", "clip", "blur_logits", "deblur", "finish"}
    assert got.backend == "torch on cpu" and got.precision == "fp32"


def test_bf16_is_near(model: ExportModel) -> None:
    left, right = (noise((96, 96, 3), seed, np.uint16) for seed in (1, 2))
    images = [TorchDeblurrer(model, precision=p, device="cpu")(left, right).restored for p in ("fp32", "bf16")]
    assert 40 < psnr(*images, data_range=65535) < 90


def test_unknown_forms_are_refused(model: ExportModel) -> None:
    with pytest.raises(ValueError, match="got 'rows' and 'fp32'"):
        TorchDeblurrer(model, layout="rows")
    with pytest.raises(ValueError, match="got 'torch' and 'int8'"):
        TorchDeblurrer(model, precision="int8")


def test_views_that_are_no_pair_are_refused(model: ExportModel) -> None:
    with pytest.raises(DataError, match="right view like the left view"):
        TorchDeblurrer(model, device="cpu")(noise((32, 32, 3), 1, np.uint8), noise((32, 31, 3), 2, np.uint8))


def test_broken_weights_give_no_image(model: ExportModel) -> None:
    for module, match in (("network", "restored image"), ("clip", "blur logits")):
        torch = TorchDeblurrer(model, device="cpu")
        for parameter in (torch.network if module == "network" else torch.estimator.encoder).parameters():
            parameter.data.fill_(math.nan)
        with pytest.raises(NumericsError, match=match):
            torch(noise((32, 32, 3), 1, np.uint8), noise((32, 32, 3), 2, np.uint8))
