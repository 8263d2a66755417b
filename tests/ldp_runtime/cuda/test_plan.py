import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_runtime.cuda.base import ALIGNMENT
from ldp_runtime.cuda.plan import CLIP, DEBLUR, FINISH, LOGITS, Buffer, Layout, PairForm, Plan
from ldp_runtime.stages.tiles import TileGrid
from tests.ldp_runtime.tiny_bundle import EMBED_DIM, tiny_manifest

BUFFERS = st.builds(
    lambda size, first, length: Buffer(size, first, min(first + length, FINISH)),
    st.integers(1, 5000),
    st.integers(CLIP, FINISH),
    st.integers(0, 3),
)


@settings(max_examples=200)
@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), BUFFERS, max_size=10))
def test_buffers_that_meet_do_not_overlap(buffers: dict[str, Buffer]) -> None:
    layout = Layout.pack(buffers)
    assert layout.offsets.keys() == buffers.keys()
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets.values())
    assert all(layout.offsets[name] + buffer.size <= layout.size for name, buffer in buffers.items())
    for a, b in itertools.combinations(buffers, 2):
        if buffers[a].meets(buffers[b]):
            (low, x), (high, _) = sorted((layout.offsets[n], buffers[n].size) for n in (a, b))
            assert low + x <= high, f"{a} and {b} overlap"


def test_buffers_of_different_times_share_memory() -> None:
    buffers = {"clip": Buffer(1000, CLIP, CLIP), "deblur": Buffer(900, DEBLUR, DEBLUR), "all": Buffer(10, CLIP, FINISH)}
    layout = Layout.pack(buffers)
    assert layout.offsets["clip"] == layout.offsets["deblur"]
    assert layout.size == 1024 + 256
    assert not Buffer(1, CLIP, LOGITS).meets(Buffer(1, DEBLUR, FINISH))


def a_plan(h: int, w: int, *, axis: str = "horizontal", tile: tuple[int, int] | None = None, clip: bool = True) -> Plan:
    form = PairForm((h, w), np.dtype(np.uint16), axis, True)
    manifest = tiny_manifest(clip=clip)
    H, W = manifest.padding.padded_size(*form.along_x)
    return Plan.create(form, manifest, TileGrid.cover(H, W, tile or (H, W), multiple=32, halo=16))


def test_sizes_are_those_of_the_frame() -> None:
    plan = a_plan(100, 210, axis="vertical")
    assert plan.padded == (224, 128)
    assert plan.tokens == (14, 8)
    assert plan.deblur_shapes == {"pair": (1, 6, 224, 128), "blur_logits": (1, 1, 14, 8)}
    assert plan.clip_shapes["stereo"] == (len(plan.windows), 3, 64, 128)
    inputs, outputs = plan.inputs(), plan.outputs()
    assert inputs.offsets["right"] >= 100 * 210 * 3 * 2
    assert list(outputs.offsets) == ["invalid", "logits", "map", "image"]  # what always goes to the host comes first
    assert outputs.size - outputs.offsets["image"] >= 100 * 210 * 3 * 2


def test_runs_of_clip_cover_every_window_once_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.cuda.plan.clip_batch", lambda windows: 4)
    plan = a_plan(100, 150)
    covered = [w for first in plan.batches() for w in range(first, first + plan.batch)]
    assert set(covered) == set(range(len(plan.windows)))
    assert len(plan.batches()) == -(-len(plan.windows) // 4)


def test_tiles_take_less_memory_than_the_whole() -> None:
    whole, tiled = a_plan(400, 640), a_plan(400, 640, tile=(160, 160))
    sizes = [
        p.work(
            np.float16, (EMBED_DIM, np.float16), {"clip": 0, "deblur": 24 * p.tiles.tile[0] * p.tiles.tile[1]}, {}
        ).size
        for p in (whole, tiled)
    ]
    assert tiled.tiled
    assert sizes[1] < sizes[0]


def test_memory_of_tiles_does_not_grow_with_the_height() -> None:
    sizes = {
        a_plan(h, 640, tile=(160, 160), clip=False).work(np.float32, (0, np.float32), {"deblur": 0}, {}).size
        for h in (400, 4000)
    }
    assert sizes == {4 * (3 * 160 * 640 + 9 * 160 * 160)}  # a row of tiles, and the pair and image of one


@pytest.mark.parametrize("tile", [None, (160, 160)])
def test_what_a_head_writes_meets_what_runs_beside_it(tile: tuple[int, int] | None) -> None:
    """Whole, it runs beside CLIP and the blur logits; in tiles just before the rest, when CLIP's memory is free."""
    scratch = {"clip": 5000, "head": 6000, "deblur": 7000}
    layout = a_plan(400, 640, tile=tile).work(np.float16, (EMBED_DIM, np.float16), scratch, {"x": 8000})
    ends = {"head_scratch": 6000, "x": 8000, "clip_scratch": 5000, "deblur_scratch": 7000}

    def overlap(a: str, b: str) -> bool:
        (low, x), (high, _) = sorted((layout.offsets[name], ends[name]) for name in (a, b))
        return low + x > high

    pairs = [("x", "head_scratch"), ("x", "deblur_scratch")]
    pairs += [("x", "clip_scratch"), ("head_scratch", "clip_scratch")] if tile is None else []
    assert not any(overlap(*pair) for pair in pairs)


@pytest.mark.parametrize("tile", [None, (160, 160)])
def test_the_head_and_the_rest_share_scratch_memory(tile: tuple[int, int] | None) -> None:
    scratch = {"clip": 0, "head": 10**9, "deblur": 10**9}
    size = a_plan(400, 640, tile=tile).work(np.float16, (EMBED_DIM, np.float16), scratch, {"x": 8000}).size
    assert 10**9 < size < 1.1 * 10**9
