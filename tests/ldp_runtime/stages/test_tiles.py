import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.stages.tiles import (
    AUTO,
    TILE_BYTES,
    TILE_HALO,
    WHOLE_BYTES,
    TileAxis,
    TileError,
    bytes_per_pixel,
    check_tile,
    even_tile,
    fit_tile,
    free_memory,
    is_local,
    least_side,
    ran_out_of_memory,
    tile_halo,
    tile_multiple,
    tilings,
)

NANO = {"width": 32, "encoder": [1, 1, 2], "stem": 2, "bpa": ["decoder"], "window": 8, "sca_cell": 32}
SMALL = {
    "width": 32,
    "encoder": [2, 2, 2, 2],
    "stem": 1,
    "bpa": ["encoder", "middle", "decoder"],
    "window": 16,
    "sca_cell": 32,
}


def test_the_grid_is_that_of_the_deepest_window() -> None:
    assert tile_multiple(NANO, 32, 16) == 64  # 8 positions of 8 px
    assert tile_multiple(SMALL, 32, 32) == 256  # 16 positions of 16 px, in the middle
    assert tile_multiple({**SMALL, "bpa": ["encoder"]}, 32, 32) == 128
    assert tile_multiple({**SMALL, "bpa": []}, 32, 14) == 224
    assert tile_multiple({"config": "another"}, 32, 16) == 32


def test_global_networks_are_not_local() -> None:
    assert is_local(NANO)
    assert not is_local({**NANO, "sca_cell": None})
    assert not is_local({**NANO, "window": None})
    assert is_local({**NANO, "window": None, "bpa": []})
    assert is_local({"halo": 160}) and not is_local({"halo": None})


def test_tiles_share_the_halo_that_the_network_names() -> None:
    network = {"name": "dpdnet", "memory": 2 << 10, "halo": 160}
    assert (tile_halo(network), tile_halo(NANO), tile_halo({"halo": None})) == (160, TILE_HALO, TILE_HALO)
    assert bytes_per_pixel(network) == 2048
    grids = list(tilings(2000, 2800, AUTO, network, 16))
    assert all(axis.halo == 160 and axis.overlap(1) >= 320 for grid in grids for axis in (grid.rows, grid.columns))
    assert max(grids[0].tile) >= 4 * 160  # shorter ones would compute little but halos
    with pytest.raises(TileError, match="at least 352 px"):
        check_tile(200, 16, 160)


def test_a_network_that_sees_the_whole_image_gets_it_while_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"memory": 5000, "halo": None}
    for spare, whole in ((0, True), (-1, False)):
        monkeypatch.setattr("ldp_runtime.stages.tiles.free_memory", lambda spare=spare: 1200 * 1600 * 5000 + spare)
        first = next(tilings(1200, 1600, AUTO, network, 16))
        assert (first.tile == (1200, 1600)) is whole
    monkeypatch.undo()
    assert free_memory() > 0


def test_a_network_that_resizes_the_pair_gets_it_whole_unless_tiles_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ldp_runtime.stages.tiles.free_memory", lambda: 1152 * 1792 * 5000)
    network = {"memory": 5000, "halo": None, "works_at": [1152, 1792]}
    assert [grid.tile for grid in tilings(4480, 6720, AUTO, network, 16)] == [(4480, 6720)]
    assert len(next(tilings(4480, 6720, AUTO, network | {"works_at": None}, 16))) > 1
    assert len(next(tilings(4480, 6720, 1024, network, 16))) > 1


@settings(max_examples=300)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([32, 64]), st.integers(0, 48))
def test_tiles_cover_the_axis_with_halos(units: int, most: int, multiple: int, halo: int) -> None:
    size = 32 * units
    tile = fit_tile(size, 32 * most, multiple=multiple, halo=halo)
    if tile is None:
        assert 32 * most < multiple + 2 * halo + multiple
        return
    axis = TileAxis.spread(size, tile, multiple=multiple, halo=halo)
    assert axis.tile <= max(32 * most, 1)
    assert axis.origins[0] == 0
    assert axis.origins[-1] + tile == size
    assert all(origin % multiple == 0 for origin in axis.origins)
    gaps = np.diff(axis.origins)
    assert (gaps > 0).all()
    assert (tile - gaps >= 2 * halo).all()
    weights = axis.weights()
    total = np.zeros(size)
    for origin, weight in zip(axis.origins, weights, strict=True):
        total[origin : origin + tile] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() >= 0
    margin = halo // 2  # the border of a tile, where its neighbours are missing, counts for nothing
    if len(axis.origins) > 1 and margin:
        assert (weights[1:, :margin] == 0).all()
        assert (weights[:-1, tile - margin :] == 0).all()


def test_weights_are_smooth() -> None:
    axis = TileAxis.spread(1024, 512, multiple=64)
    assert np.abs(np.diff(axis.weights(), axis=1)).max() < 0.05


def test_a_tile_that_does_not_end_with_the_axis() -> None:
    with pytest.raises(ValueError, match=r"shorter than the axis of 1000 px by a multiple of 64 px.* got 512"):
        TileAxis.spread(1000, 512, multiple=64)
    with pytest.raises(ValueError, match="got 128"):
        TileAxis.spread(1024, 128, multiple=64)  # no room between its halos
    assert fit_tile(1024, 160, multiple=64) is None
    assert fit_tile(1000, 512, multiple=64) == 1000 - 8 * 64


@settings(max_examples=300)
@given(st.integers(1, 90), st.integers(1, 40), st.sampled_from([32, 64]), st.integers(0, 48))
def test_even_tiles_are_as_few_and_as_short_as_can_be(units: int, most: int, multiple: int, halo: int) -> None:
    size = 32 * units
    longest = fit_tile(size, 32 * most, multiple=multiple, halo=halo)
    tile = even_tile(size, 32 * most, multiple=multiple, halo=halo)
    if longest is None or longest == size:
        assert tile == longest
        return
    assert tile is not None

    def count(tile: int) -> int:
        return len(TileAxis.spread(size, tile, multiple=multiple, halo=halo).origins)

    assert count(tile) == count(longest)
    shorter = tile - multiple
    assert shorter < multiple + 2 * halo or count(shorter) > count(tile)


def sides(
    H: int, W: int, tile: int | str, network: dict[str, object] = NANO, multiple: int = 64
) -> list[tuple[int, int]]:
    return [grid.tile for grid in tilings(H, W, tile, network, multiple)]


def test_memory_of_a_network() -> None:
    assert (bytes_per_pixel(NANO), bytes_per_pixel(SMALL)) == (320, 1088)
    assert WHOLE_BYTES // 320 == 6_710_886  # the 6.7 and 1.97 megapixels of the documentation
    assert WHOLE_BYTES // 1088 == 1_973_790


def test_auto_takes_one_piece_while_memory_is_bounded() -> None:
    assert sides(1120, 1696, "auto")[0] == (1120, 1696)
    assert sides(1120, 1696, "auto", SMALL, 256)[0] == (1120, 1696)
    for network, multiple in ((NANO, 64), (SMALL, 256)):
        for H, W in ((2560, 3360), (4480, 6720), (8736, 11648)):
            (th, tw), *smaller = sides(H, W, "auto", network, multiple)
            assert th * tw * bytes_per_pixel(network) <= TILE_BYTES
            areas = [th * tw, *(a * b for a, b in smaller)]
            assert areas == sorted(areas, reverse=True)
            assert max(smaller[-1]) <= least_side(multiple)


def test_a_network_that_sees_everything_goes_in_one_piece_first() -> None:
    assert sides(4480, 6720, "auto", {**NANO, "sca_cell": None})[0] == (4480, 6720)


def test_tiles_as_asked() -> None:
    assert sides(4480, 6720, "off") == [(4480, 6720)]
    assert max(sides(4480, 6720, 1000)[0]) <= 1000
    assert sides(512, 768, 1000)[0] == (512, 768)
    assert sides(512, 2048, 1000)[0][0] == 512


def test_sizes_that_are_refused() -> None:
    assert [check_tile(tile, 64) for tile in ("auto", "off", 320)] == ["auto", "off", 320]
    for wrong in (319, 0, -1, "on"):
        with pytest.raises(TileError) as caught:
            check_tile(wrong, 64)
        assert str(caught.value) == f"expected tiles of auto, off or at least 320 px for this bundle, got {wrong}"


@given(st.integers(1, 400))
def test_the_least_side_covers_every_axis(units: int) -> None:
    for multiple in (64, 256):
        assert even_tile(32 * units, least_side(multiple), multiple=multiple) is not None


@pytest.mark.parametrize(
    "text",
    [
        "openvino failed: std::bad_alloc",
        "onnxruntime failed: Failed to allocate memory for requested buffer of size 1073741824",
        "onnxruntime failed: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error 2: out of memory",
    ],
)
def test_words_for_no_memory(text: str) -> None:
    assert ran_out_of_memory(RuntimeError(text))
    assert ran_out_of_memory(MemoryError())
    assert not ran_out_of_memory(RuntimeError("openvino failed: no such operation"))


ONNX_RUNTIME_TEXT = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'conv2d_2_nchwc' "
    "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 51"
)
OPENVINO_TEXT = (
    "Exception from src/inference/src/cpp/core.cpp:132: Exception from src/inference/src/dev/plugin.cpp:59: "
    "std::bad_alloc"
)


@pytest.mark.parametrize("text", [ONNX_RUNTIME_TEXT, ONNX_RUNTIME_TEXT.replace("conv2d_2", "conv" * 20), OPENVINO_TEXT])
def test_errors_that_libraries_raised_under_a_limit_are_known_though_their_text_is_cut(text: str) -> None:
    """What ONNX Runtime 1.32 and OpenVINO 2026.4 said under RLIMIT_AS; the backends keep 300 characters of it."""
    try:
        raise BackendError(f"failed: {one_line(RuntimeError(text))}") from RuntimeError(text)
    except BackendError as error:
        assert ran_out_of_memory(error)
    assert not ran_out_of_memory(BackendError("failed: a node has no kernel"))
