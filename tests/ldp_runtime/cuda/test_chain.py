"""The chain on the host device: the same code as on a GPU, against the CPU pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ldp_runtime.registry
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.base import OutOfDeviceMemoryError
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, ImageError, NumericsError
from tests.ldp_runtime.cuda.chains import Foreign, assert_close, on_cpu
from tests.ldp_runtime.cuda.host_device import HostBackend, HostDevice
from tests.ldp_runtime.helpers import a_pair, assert_same
from tests.ldp_runtime.tiny_bundle import Graph, clip_graph, deblur_graph, make_tiny_bundle, rewrite

SIZES = [(50, 100), (33, 65), (1, 1), (1, 40), (40, 1), (2, 3), (64, 64)]


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chain_is_the_cpu_pipeline(use: Any, bundle: Path, dtype: type, axis: str) -> None:
    gpu, _ = use()
    cpu = on_cpu(bundle)
    for seed, size in enumerate(SIZES):
        pair = a_pair(*size, dtype, seed)
        result = gpu(*pair, axis=axis)
        assert (result.backend, result.precision, result.notes) == ("host", "fp32", ())
        assert_close(result, cpu(*pair, axis=axis))


def test_chain_runs_the_fp16_graphs(use: Any, bundle: Path) -> None:
    gpu, _ = use(precision="fp16")
    pair = a_pair(50, 100, np.uint16)
    result, expected = gpu(*pair), on_cpu(bundle, "fp16")(*pair)
    np.testing.assert_allclose(result.blur_logits, expected.blur_logits, atol=2e-6)
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 1


def test_blur_map_alone_opens_no_deblur_engine(use: Any, bundle: Path) -> None:
    gpu, device = use()
    pair = a_pair(50, 70)
    result, expected = gpu.blur_map(*pair, axis="vertical"), on_cpu(bundle).blur_map(*pair, axis="vertical")
    np.testing.assert_allclose(result.blur_map, expected.blur_map, atol=1e-6)
    np.testing.assert_allclose(result.blur_logits, expected.blur_logits, atol=2e-6)
    assert "deblur" not in device.log
    assert list(result.timings) == ["open", "upload", "prepare", "clip", "blur_logits", "finish", "download"]


def test_inputs_of_any_strides_and_byte_order(use: Any, bundle: Path) -> None:
    gpu, _ = use()
    left, right = a_pair(50, 40, np.uint16)
    expected = gpu(left, right)
    assert_same(gpu(left.astype(">u2"), np.asfortranarray(right)), expected)
    assert expected.restored.dtype == np.dtype(np.uint16)


def test_a_network_without_a_blur_map(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path, clip=False)
    gpu, device = use(path)
    pair = a_pair(50, 100, np.uint16)
    result, expected = gpu(*pair, axis="vertical"), on_cpu(path)(*pair, axis="vertical")
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 1
    assert (result.blur_map, result.blur_logits) == (None, None)
    assert [name for name in device.log if name != "copy"] == ["prepare_u16_f16", "deblur", "finish_u16_turned"]
    with pytest.raises(BundleError, match="has no blur map: its network reads none"):
        gpu.blur_map(*pair)
    tiled, device = use(path, tile=256)
    pair = a_pair(100, 400)
    assert np.abs(tiled(*pair).restored.astype(int) - on_cpu(path)(*pair).restored).max() <= 1
    assert device.log.count("blend") == 4
    views = [Foreign(device, view) for view in pair]
    resident = tiled(*views)
    np.testing.assert_array_equal(resident.restored.numpy(), tiled(*pair).restored)
    assert resident.blur_map is None


@pytest.mark.parametrize(("ensemble", "canvas"), [("dp-aware", "stereo"), ("blur-aware", "center"), (5, "stereo")])
def test_clip_sees_what_the_prompts_query_alone(
    use: Any, tmp_path: Path, ensemble: str | int, canvas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldp_runtime.cuda.plan.clip_batch", lambda windows: 4)  # the last run repeats 3 of 9
    path = make_tiny_bundle(tmp_path, ensemble=ensemble)
    cpu = on_cpu(path)
    for tile in ("auto", 256):
        gpu, device = use(path, tile=tile)
        for pair in (a_pair(100, 150), a_pair(100, 400)):
            assert_close(gpu(*pair), cpu(*pair))
        assert ("blend" in device.log) == (tile == 256)
        (runner, _), *_ = gpu._chain._runners.values()
        assert list(runner.plan.clip_shapes) == [canvas]
        assert {"stereo", "center"} & {*runner._stages.layout.offsets} == {canvas}
        assert f"{canvas}_features" in runner._stages.layout.offsets


def test_more_windows_than_a_batch(use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.cuda.plan.clip_batch", lambda windows: 4)  # of 9: the last run repeats 3
    gpu, device = use()
    pair = a_pair(100, 150)
    assert_close(gpu(*pair), on_cpu(bundle)(*pair))
    assert device.log.count("clip") == 3


def test_map_ends_with_the_error_of_its_source(use: Any) -> None:
    gpu, _ = use()

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield a_pair(8, 8)
        raise ImageError("this file is damaged")

    with pytest.raises(ImageError, match="this file is damaged"):
        list(gpu.map(pairs()))
    assert gpu(*a_pair(8, 8)).restored.shape == (8, 8, 3)


def test_map_that_is_left_early_leaves_nothing_behind(use: Any) -> None:
    gpu, device = use()
    for _ in gpu.map(a_pair(20, 24, seed=i) for i in range(5)):
        break
    before = device.used
    assert_same(gpu(*a_pair(20, 24)), gpu(*a_pair(20, 24)))
    assert device.used == before  # the two frames in flight gave their memory back to the chain


def test_tiles_when_memory_is_short(use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.stages.tiles.TILE_BYTES", 1)  # as small as they can be
    pair = a_pair(200, 330, np.uint16)
    whole, device = use()
    expected = whole(*pair)
    gpu, small = use(limit=device.peak - 1)
    result = gpu(*pair)
    (note,) = result.notes
    assert "the test's host did not take larger pieces" in note
    assert "restored in 3 blended tiles of 256 x 224 px" in note
    assert small.peak < device.peak
    assert_close(result, expected)  # halos are wider than the tiny network sees
    for _ in range(2):  # from now on at once, and as a graph
        again = gpu(*pair)
        assert again.notes == (note,)
        assert_same(again, result)
    assert small.log[-2:] == ["graph", "copy"]
    assert_close(gpu(*pair, axis="vertical"), on_cpu(bundle)(*pair, axis="vertical"))


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_rows_of_tiles_are_blended_as_one(use: Any, bundle: Path, axis: str) -> None:
    """Several rows that overlap by more and by less than half: what a row shares moves to the top of the next."""
    for h in (260, 300, 420, 700):
        gpu, _ = use(tile=256)
        pair = a_pair(*((h, 90) if axis == "horizontal" else (90, h)))
        result = gpu(*pair, axis=axis)
        assert result.tiles > 1
        assert_close(result, on_cpu(bundle)(*pair, axis=axis))


@pytest.mark.parametrize(("least", "most"), [((16, 16), (256, 256)), ((128, 256), (128, 256))])
def test_tiles_when_no_engine_takes_the_whole(use: Any, bundle: Path, least: Any, most: Any) -> None:
    gpu, device = use(deblur=[(least, most)])
    pair = a_pair(100, 300)
    result = gpu(*pair)
    assert "tiles of 256 x 128 px" in result.notes[0]
    assert_close(result, on_cpu(bundle)(*pair))
    assert device.log.count("blend") == 2


def test_tiles_that_are_asked_for(use: Any, bundle: Path) -> None:
    pair = a_pair(100, 400)
    gpu, device = use(tile=256)
    result = gpu(*pair)
    assert result.tiles == 4
    assert result.notes == ()  # nothing that the user did not ask for
    assert device.log.count("blend") == 4
    assert_close(result, on_cpu(bundle)(*pair))
    gpu, device = use(tile=512)
    assert gpu(*pair).tiles == 1
    assert "blend" not in device.log


@pytest.mark.parametrize(("tile", "sizes"), [("off", ((16, 16), (256, 256))), ("auto", ((512, 512), (512, 512)))])
def test_no_engine_for_the_size(use: Any, tile: str, sizes: Any) -> None:
    gpu, _ = use(tile=tile, deblur=[sizes])
    with pytest.raises(BackendError, match="no deblur engine takes"):
        gpu(*a_pair(100, 300))


def test_no_memory_at_all(use: Any) -> None:
    gpu, _ = use(limit=100_000)
    with pytest.raises(OutOfDeviceMemoryError, match="300 x 200 px does not fit into the memory of the test's host"):
        gpu(*a_pair(200, 300))


def test_another_chain_goes_when_memory_is_short(use: Any) -> None:
    gpu, device = use()
    gpu(*a_pair(64, 64))
    one = device.peak
    gpu, device = use(limit=one * 3 // 2)
    for size in ((64, 64), (64, 60), (60, 64)):
        assert gpu(*a_pair(*size)).notes == ()
    assert device.peak <= one * 3 // 2


@pytest.mark.parametrize("seed", [None, 1])
def test_pairs_wait_where_those_in_flight_have_the_memory(use: Any, seed: int | None) -> None:
    pairs = [a_pair(64, 64, seed=i) for i in range(5)]
    whole, device = use()
    expected = [whole(*pair) for pair in pairs]
    gpu, small = use(limit=device.peak, seed=seed)  # for one pair in flight
    for result, other in zip(gpu.map(pairs), expected, strict=True):
        assert result.notes == ()
        assert_same(result, other)
    first, second = (gpu.start(*pair) for pair in pairs[:2])
    second.cancel()
    assert_same(first.result(), expected[0])
    assert_same(gpu(*pairs[2]), expected[2])
    assert small.peak <= device.peak


def test_memory_that_is_gone_later_gives_smaller_tiles(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.stages.tiles.TILE_BYTES", 1)
    pair = a_pair(200, 330)
    gpu, device = use()
    expected = gpu(*pair)
    device.limit = device.peak - 1  # another program has the rest
    for side in (40, 41):
        gpu(*a_pair(side, side))  # another size has the place of the first
    result = gpu(*pair)
    assert "restored in 3 blended tiles" in result.notes[0]
    assert_close(result, expected)
    assert gpu(*pair).notes == result.notes


def test_chains_of_other_sizes_are_let_go(use: Any) -> None:
    gpu, device = use()
    used = []
    for side in (40, 41, 42, 43, 44, 45):
        gpu(*a_pair(side, side))
        used.append(device.used)
    assert max(used[2:]) <= used[1] * 1.1


def test_nan_is_an_error_not_an_image(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    rng = np.random.default_rng(0)
    spoil(path / "deblur.onnx", deblur_graph(rng, np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    for _ in range(3):  # in a graph too, and the chain goes on
        with pytest.raises(NumericsError, match="restored image, got NaN or Inf in"):
            gpu(*a_pair(20, 24))
    assert gpu.blur_map(*a_pair(20, 24)).blur_map.shape == (20, 24)
    spoil(path / "clip.onnx", clip_graph(rng, np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    with pytest.raises(NumericsError, match="finite blur logits"):
        gpu(*a_pair(20, 24))


def test_an_error_of_one_pair_leaves_those_in_flight_alone(use: Any, bundle: Path, tmp_path: Path) -> None:
    gpu, _ = use()
    pair = a_pair(20, 24)
    started = gpu.start(*pair)
    with pytest.raises(ImageError, match="one size"):
        gpu.start(pair[0], pair[1][1:])
    assert_close(started.result(), on_cpu(bundle)(*pair))

    path = make_tiny_bundle(tmp_path)
    spoil(path / "deblur.onnx", deblur_graph(np.random.default_rng(0), np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    for _ in range(3):
        both = [gpu.start(*a_pair(20, 24, seed=seed)) for seed in range(2)]
        for started in both:
            with pytest.raises(NumericsError):
                started.result()


def test_features_whose_squares_overflow_are_an_error_not_a_cosine_of_zero(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    model = clip_graph(np.random.default_rng(0), np.dtype(np.float32))
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight) * np.float32(1e21)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path / "clip.onnx")
    rewrite(path)
    gpu, _ = use(path)
    for action in (gpu, gpu.blur_map):
        with pytest.raises(NumericsError, match="finite blur logits, got NaN or Inf in"):
            action(*a_pair(20, 24))


def spoil(path: Path, model: onnx.ModelProto) -> None:
    """Writes a graph whose weights hold one NaN."""
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_an_engine_of_another_pipeline(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    g = Graph(np.dtype(np.float32))
    g.node("Slice", "pair", *(g.constant(np.array([at])) for at in (0, 2, 1)), output="restored")
    g.node("Identity", "blur_logits", output="rest")
    model = g.model(
        {"pair": [1, 6, "H", "W"], "blur_logits": [1, 1, "h", "w"]},
        {"restored": [1, 2, "H", "W"]},
        onnx.TensorProto.FLOAT,
    )
    onnx.save(model, path / "deblur.onnx")
    rewrite(path)
    gpu, _ = use(path)
    with pytest.raises(BundleError, match=r"expected restored \(1, 3, 32, 32\) of its engine, got \(1, 2, 32, 32\)"):
        gpu(*a_pair(20, 24))


def test_auto_goes_on_when_the_gpu_cannot(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HostBackend(HostDevice(), deblur=[((512, 512), (512, 512))])
    backend.name = "cuda"
    monkeypatch.setattr(ldp_runtime.registry, "BACKENDS", {**ldp_runtime.registry.BACKENDS, "cuda": backend})
    deblurrer = Deblurrer.from_bundle(bundle)
    assert deblurrer.reason.startswith("cuda in fp32: the fastest on an NVIDIA GPU")
    result = deblurrer(*a_pair(20, 24))
    assert result.backend in ("openvino", "onnxruntime")
    assert "cuda was passed over: no deblur engine takes" in deblurrer.reason


def test_the_chain_says_when_a_network_is_global(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    rewrite(path, network={"sca_cell": None})
    gpu, _ = use(path, deblur=[((16, 16), (256, 256))])
    assert "differ from the whole" in gpu(*a_pair(100, 300)).notes[1]
    assert Bundle.load(path).manifest.network == {"sca_cell": None}
