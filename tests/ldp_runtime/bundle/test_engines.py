import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.engines import (
    EngineEntry,
    ShapeRange,
    architecture_number,
    clip_shapes,
    deblur_shapes,
    engine_key,
    feature_shapes,
    nearest,
)
from ldp_runtime.bundle.schema import manifest_from_json
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH, clip_batch
from tests.ldp_runtime import tiny_bundle
from tests.ldp_runtime.tiny_bundle import PATCH, make_tiny_bundle, rewrite

VERSION = "1.7.1"
TARGETS = ("sm_86", "sm_89")
SMALL, MIDDLE, LARGE = (64, 64), (128, 192), (256, 384)


def profile(*sizes: tuple[int, int]) -> dict[str, ShapeRange]:
    """The deblur graph's, from the smallest to the largest of three sizes, or of one."""
    low, opt, high = (deblur_shapes(*size, PATCH) for size in (sizes if len(sizes) == 3 else sizes * 3))
    return {name: ShapeRange(low[name], opt[name], high[name]) for name in low}


PARTS: dict[str, Any] = {
    "kind": "deblur",
    "flavour": "rtx",
    "version": VERSION,
    "targets": TARGETS,
    "profile": profile(SMALL, MIDDLE, LARGE),
}


def add_engine(bundle: Path, content: bytes = b"plan", **changes: Any) -> EngineEntry:
    return tiny_bundle.add_engine(bundle, content, **{**PARTS, **changes})


def find(bundle: Path, size: tuple[int, int] = MIDDLE, **changes: Any) -> EngineEntry:
    asked: dict[str, Any] = {"flavour": "rtx", "version": VERSION, "arch": "sm_89", **changes}
    return Bundle.load(bundle).find_engine("deblur", shapes=deblur_shapes(*size, PATCH), **asked)


def test_an_engine_is_found_and_read(bundle: Path) -> None:
    entry = add_engine(bundle)
    loaded = Bundle.load(bundle)
    assert loaded.manifest.engines == (entry,)
    assert manifest_from_json(json.loads(json.dumps(loaded.manifest.to_json()))) == loaded.manifest
    for size in (SMALL, MIDDLE, LARGE, (64, 384)):
        assert find(bundle, size) == entry
    assert find(bundle, arch="sm_86") == entry
    assert loaded.read_engine(entry) == b"plan"


@pytest.mark.parametrize(
    "asked",
    [
        {"version": "1.7.2"},
        {"flavour": "tensorrt"},
        {"arch": "sm_75"},
        {"arch": "sm_90"},
        {"size": (288, 384)},
        {"size": (32, 64)},
        {"size": (64, 416)},
    ],
)
def test_an_engine_of_something_else_is_not_taken(bundle: Path, asked: dict[str, Any]) -> None:
    add_engine(bundle)
    with pytest.raises(BackendError) as caught:
        find(bundle, **asked)
    message = str(caught.value)
    assert "\n" not in message
    assert "deblur by TensorRT-RTX 1.7.1 for sm_86, sm_89: pair 1x6x64x64 to 1x6x256x384" in message
    assert f"build one with ldp-export engine {bundle}" in message


def test_an_engine_of_another_graph_is_not_taken(bundle: Path, tmp_path: Path) -> None:
    entry = add_engine(bundle)
    shutil.copy(make_tiny_bundle(tmp_path / "other", seed=1) / "deblur.fp16.onnx", bundle / "deblur.fp16.onnx")
    rewrite(bundle, engines=(entry,))
    assert Bundle.load(bundle).manifest.engines == (entry,)
    with pytest.raises(BackendError, match="got no engine of its graph"):
        find(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.7.2"},
        {"flavour": "tensorrt"},
        {"targets": ("sm_90",)},
        {"profile": profile((32, 32), MIDDLE, (512, 512))},
    ],
)
def test_a_manifest_cannot_claim_another_origin(bundle: Path, change: dict[str, Any]) -> None:
    entry = msgspec.structs.replace(add_engine(bundle), **change)
    save_manifest(bundle, msgspec.structs.replace(read_manifest(bundle), engines=(entry,)))
    with pytest.raises(BackendError):
        find(bundle, version=entry.version, flavour=entry.flavour, arch=entry.targets[-1])


def test_a_fixed_size_comes_first_and_else_the_nearest(bundle: Path) -> None:
    wide = add_engine(bundle, profile=profile(SMALL, SMALL, (1024, 1024)))
    tuned = add_engine(bundle, profile=profile(SMALL, LARGE, (1024, 1024)))
    fixed = add_engine(bundle, profile=profile(MIDDLE))
    assert find(bundle, MIDDLE) == fixed
    assert find(bundle, LARGE) == tuned
    assert find(bundle, (64, 96)) == wide
    assert nearest([fixed], deblur_shapes(*LARGE, PATCH)) is None


@pytest.mark.parametrize("content", [b"", b"plan!", b"plam", None])
def test_a_damaged_engine_is_refused(bundle: Path, content: bytes | None) -> None:
    entry = add_engine(bundle)
    path = bundle / entry.file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    loaded = Bundle.load(bundle)  # the rest of the bundle is whole
    with pytest.raises(BundleError, match="build it again with ldp-export engine"):
        loaded.read_engine(entry)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    entry = add_engine(bundle)
    (bundle / entry.file).rename(tmp_path / "plan")
    (bundle / entry.file).symlink_to(tmp_path / "plan")
    with pytest.raises(BundleError, match="a link to elsewhere"):
        Bundle.load(bundle).read_engine(entry)


def test_the_key_depends_on_everything_but_order() -> None:
    base = {"graph": "a" * 64, **PARTS}
    key = engine_key(**base)
    assert engine_key(**{**base, "targets": TARGETS[::-1]}) == key
    assert engine_key(**{**base, "profile": dict(reversed(base["profile"].items()))}) == key
    others = {
        "graph": "b" * 64,
        "kind": "clip",
        "flavour": "tensorrt",
        "version": "1.7.2",
        "targets": ("sm_86",),
        "profile": profile(SMALL, LARGE, LARGE),
    }
    keys = {engine_key(**{**base, name: value}) for name, value in others.items()}
    assert len(keys | {key}) == 7


def test_shapes_of_both_graphs() -> None:
    assert deblur_shapes(64, 96, 32) == {"pair": (1, 6, 64, 96), "blur_logits": (1, 1, 2, 3)}
    assert clip_shapes(5, 448) == {"stereo": (5, 3, 448, 896), "center": (5, 3, 448, 448)}
    assert clip_shapes(5, 448, ["center"]) == {"center": (5, 3, 448, 448)}
    assert feature_shapes(5, 14, 512, ["stereo"]) == {"stereo_features": (5, 14, 28, 512)}
    assert feature_shapes(5, 14, 512, ["center"]) == {"center_features": (5, 14, 14, 512)}


def test_architectures() -> None:
    assert [architecture_number(name) for name in ("sm_75", "sm_120")] == [75, 120]
    for wrong in ("75", "sm75", "sm_", "sm_8x", "SM_80", "sm_-1", "sm_8²"):
        with pytest.raises(ValueError, match="expected an architecture such as sm_89"):
            architecture_number(wrong)


@given(st.integers(1, 1000), st.integers(1, 100))
def test_batches_are_the_fewest_and_nearly_equal(windows: int, limit: int) -> None:
    batch = clip_batch(windows, limit)
    batches = -(-windows // batch)
    assert 1 <= batch <= limit
    assert batches == -(-windows // limit)
    assert batches * batch - windows < batches


def test_batches_by_hand() -> None:
    assert [clip_batch(n) for n in (1, 20, 64, 65, 130)] == [1, 20, 64, 33, 44]
    assert ENGINE_CLIP_BATCH == 64
    for windows, limit in ((0, 64), (5, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            clip_batch(windows, limit)
