import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ldp_runtime import host
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, NumericsError
from tests.ldp_runtime.helpers import a_pair, session_of
from tests.ldp_runtime.tiny_bundle import (
    rewrite,
)

FIX_NUMERICS = "use precision fp32, and if that does not help the bundle is at fault"


def test_a_graph_of_more_than_the_prompts_query_is_refused(spoilt: Path) -> None:
    rewrite(spoilt, ensemble="dp-aware")
    with pytest.raises(BundleError, match=r"expected the inputs stereo, got center, stereo; export the bundle again"):
        Deblurrer.from_bundle(spoilt, backend="onnxruntime", threads=1).blur_map(*a_pair(20, 20))


def test_batches_are_bounded(exact: Deblurrer, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    session = session_of(exact, "clip")
    run = type(session).run
    monkeypatch.setattr(
        type(session), "run", lambda self, feeds: (batches.append(len(next(iter(feeds.values())))), run(self, feeds))[1]
    )
    exact.blur_map(*a_pair(150, 210))
    assert batches == [8, 7]


LEAST = 256
"""The smallest side of tiles for the tiny bundle."""


def shapes_seen(deblurrer: Deblurrer, monkeypatch: pytest.MonkeyPatch, most: float = math.inf) -> list[tuple[int, int]]:
    """Keeps the sizes that the deblur graph is asked for; above so many px it says that memory ran out."""
    seen: list[tuple[int, int]] = []
    session = session_of(deblurrer, "deblur")
    run = type(session).run

    def watched(self: object, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "pair" in feeds:
            H, W = feeds["pair"].shape[2:]
            seen.append((H, W))
            if most < H * W:
                raise BackendError("onnxruntime failed: Failed to allocate memory for requested buffer of size 123")
        return run(self, feeds)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(type(session), "run", watched)
    return seen


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_tiles_agree_with_one_piece(
    bundle: Path, exact: Deblurrer, axis: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = a_pair(300, 520, dtype)
    tiled = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1, tile=LEAST)
    expected = exact(left, right, axis=axis)
    seen = shapes_seen(tiled, monkeypatch)
    result = tiled(left, right, axis=axis)
    assert (expected.tiles, result.tiles) == (1, 12)
    assert len(seen) == 12
    assert len(set(seen)) == 1
    assert max(seen[0]) <= LEAST
    assert result.notes == ()
    assert list(result.timings) == ["open", "prepare", "clip", "blur_logits", "deblur", "finish"]
    difference = np.abs(result.restored.astype(int) - expected.restored)
    assert difference.max() <= 1  # FP32 rounding
    assert (difference > 0).mean() < (0.001 if dtype == np.uint8 else 0.1)
    np.testing.assert_array_equal(result.blur_map, expected.blur_map)


def test_tiles_that_do_not_differ_from_the_whole_are_the_whole(bundle: Path) -> None:
    tiled = Deblurrer.from_bundle(bundle, backend="onnxruntime", threads=1, tile=512)
    assert tiled(*a_pair(300, 500)).tiles == 1


def test_smaller_tiles_when_memory_runs_out(bundle: Path, exact: Deblurrer, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = a_pair(300, 520)
    expected = exact(left, right).restored
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1, tile=544)
    seen = shapes_seen(deblurrer, monkeypatch, most=256 * 256)
    result = deblurrer(left, right)
    assert np.abs(result.restored.astype(int) - expected).max() <= 1
    assert result.notes == (
        "memory ran out with larger pieces; a pair of 520 x 300 px was restored in 12 blended tiles of 256 x 256 px",
    )
    assert seen[0] == (320, 544)
    seen.clear()
    again = deblurrer(left, right)  # what is too large is not tried again
    assert set(seen) == {(256, 256)}
    np.testing.assert_array_equal(again.restored, result.restored)
    assert deblurrer(*a_pair(100, 100)).tiles == 1


def test_memory_that_runs_out_even_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = a_pair(300, 520)
    for tile, tried in (("auto", 3), ("off", 1)):
        deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", threads=1, tile=tile)
        with monkeypatch.context() as patch:
            seen = shapes_seen(deblurrer, patch, most=0)
            with pytest.raises(BackendError) as caught:
                deblurrer(*pair)
        assert len(set(seen)) == len(seen) <= tried
        assert str(caught.value) == (
            "a pair of 520 x 300 px does not fit into memory in pieces as small as allowed (onnxruntime failed: Failed "
            "to allocate memory for requested buffer of size 123); close other programs, or allow smaller tiles with "
            "--tile"
        )


def test_nan_in_a_tile_is_found_at_its_place(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1, tile=LEAST)
    session = session_of(deblurrer, "deblur")
    run, calls = type(session).run, []

    def spoil(self: object, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = run(self, feeds)  # type: ignore[arg-type]
        if "pair" in feeds:
            calls.append(feeds["pair"].shape)
            if len(calls) == 2:
                values["restored"][0, 2, 3, 5] = np.nan  # type: ignore[index]
        return values  # type: ignore[return-value]

    monkeypatch.setattr(type(session), "run", spoil)
    with pytest.raises(NumericsError, match="in 1 of 12288, first at channel 2, y 3, x 37;"):
        deblurrer(*a_pair(300, 520))


def test_tiles_of_a_network_that_sees_everything_are_told(spoilt: Path) -> None:
    rewrite(spoilt, network={"config": "tiny", "sca_cell": None})
    result = Deblurrer.from_bundle(spoilt, backend="onnxruntime", threads=1, tile=LEAST)(*a_pair(100, 300))
    assert result.notes == (
        "2 blended tiles of 256 x 128 px differ from the whole: this network pools or attends over all it sees",
    )


def spoil_weights(path: Path, value: float) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim == 4:
            array[0] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_network_gone_wrong_gives_no_image(spoilt: Path, backend: str) -> None:
    spoil_weights(spoilt / "deblur.onnx", np.nan)
    rewrite(spoilt)
    deblurrer = Deblurrer.from_bundle(spoilt, backend=backend, threads=1)
    with pytest.raises(NumericsError, match="expected finite numbers in the restored image"):
        deblurrer(*a_pair(40, 50))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_clip_gone_wrong_gives_no_blur_map(spoilt: Path, bad: float) -> None:
    spoil_weights(spoilt / "clip.onnx", bad)
    rewrite(spoilt)
    deblurrer = Deblurrer.from_bundle(spoilt, backend="onnxruntime", threads=1)
    for action in (deblurrer, deblurrer.blur_map):
        with pytest.raises(NumericsError) as caught:
            action(*a_pair(40, 50))
        assert str(caught.value) == (
            "expected finite numbers of at most 1e+17 in CLIP's stereo_features, got NaN, Inf or larger in 32 of "
            f"768; {FIX_NUMERICS}"
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["stereo_features", "center_features"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e19])
def test_one_bad_feature_among_many_is_found(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str, name: str, bad: float
) -> None:
    """Inf would become a logit that the clip at +-10 hides or a NaN; a huge number a cosine of zero."""
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision=precision, threads=1)
    clip = session_of(deblurrer, "clip")
    run = clip.run

    def spoilt_run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        features = run(feeds)
        features[name][-1, 1, 0, 3] = bad
        return features

    monkeypatch.setattr(clip, "run", spoilt_run)
    with np.errstate(over="ignore"), pytest.raises(NumericsError, match=rf"in CLIP's {name}, got .* in 1 of "):
        deblurrer.blur_map(*a_pair(100, 140))


def test_logits_that_are_not_finite_are_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)
    monkeypatch.setattr(host, "blur_logits", lambda stereo, *_: np.full((len(stereo), 4, 4), np.nan, np.float32))
    with pytest.raises(NumericsError, match="expected finite blur logits, got NaN or Inf in 16 of 16"):
        deblurrer(*a_pair(40, 50))


def test_a_restored_image_of_another_size_is_the_bundles_fault(spoilt: Path) -> None:
    model = onnx.load(spoilt / "deblur.onnx")
    add = model.graph.node[-1]
    add.output[0] = "sum"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, -1, 0]), "crop"))
    model.graph.node.append(onnx.helper.make_node("Pad", ["sum", "crop"], ["restored"]))
    for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = f"{dim.dim_param}_out"
    onnx.save(model, spoilt / "deblur.onnx")
    rewrite(spoilt)
    with pytest.raises(BundleError) as caught:
        Deblurrer.from_bundle(spoilt, backend="onnxruntime", threads=1)(*a_pair(40, 50))
    assert str(caught.value) == (
        "expected restored (1, 3, 64, 64) of the deblur graph, got (1, 3, 63, 64); "
        "export the bundle again with ldp-export onnx"
    )
