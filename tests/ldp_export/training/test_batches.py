import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldp_export.data import PairSample
from ldp_export.simulation.simulate import simulate_pair
from ldp_export.training.batches import Batches, Crop, CropSource, collate, held_out_crops, killed_workers, stream
from ldp_export.training.config import TrainingError

MODELS = Path(__file__).parents[3] / "models"
PATCH = 4


class Pairs:
    """Pairs whose pixels tell where they come from: red is the row, green the column, blue the pair."""

    name, split = "pairs", "train"

    def __init__(self, count: int, h: int = 24, w: int = 33, dtype: type = np.uint8, target: bool = True) -> None:
        self._count, self._size, self._dtype, self._target = count, (h, w), dtype, target

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PairSample:
        y, x = np.indices(self._size)
        left = np.stack([y, x, np.full_like(y, index)], axis=2).astype(self._dtype)
        return PairSample(f"pair-{index}", left, left + 100, left + 200 if self._target else None)

    def names(self) -> tuple[str, ...]:
        return tuple(f"pair-{i}" for i in range(self._count))

    def subsets(self) -> dict[str, frozenset[str]]:
        return {}


def _source(pairs: Pairs, crop: int = 8) -> CropSource:
    h, w = pairs[0].left.shape[:2]
    rows, columns = -(-h // PATCH), -(-w // PATCH)
    logits = [
        np.float32(100 * i) + np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
        for i in range(len(pairs))
    ]
    return CropSource([pairs], logits, PATCH, crop)


def _batches(**options: object) -> Batches:
    return Batches(_source(Pairs(5)), **{"seed": 1, "batch": 4, "permute_channels": True, **options})  # type: ignore[arg-type]


def test_logits_and_pixels_of_a_crop_are_of_one_place() -> None:
    source = _source(Pairs(3))
    seen = set()
    for k in range(60):
        crop = source.crop(k % 3, np.random.default_rng(k))
        y, x, pair = (int(value) for value in crop.left[0, 0])
        assert y % PATCH == x % PATCH == 0
        assert pair == k % 3
        assert crop.left.shape == (8, 8, 3)
        assert crop.logits.shape == (2, 2)
        assert crop.logits[0, 0] == 100 * pair + (y // PATCH) * 9 + x // PATCH
        seen.add((y, x))
    assert {y for y, _ in seen} == {0, 4, 8, 12, 16}
    assert {x for _, x in seen} == {0, 4, 8, 12, 16, 20, 24}


def test_logits_are_disturbed_for_each_crop_anew_and_nothing_else_is() -> None:
    disturbed = _batches(disturb=lambda z, rng: z + rng.standard_normal(z.shape).astype(np.float32))
    plain = _batches()
    for step in range(3):
        a, b = plain[step], disturbed[step]
        assert torch.equal(a.pair, b.pair)
        assert torch.equal(a.target, b.target)
        errors = (b.logits - a.logits).flatten().tolist()
        assert len(set(errors)) == len(errors)
        assert torch.equal(disturbed[step].logits, b.logits), "a resumed run sees the same"


def test_a_horizontal_flip_swaps_the_views() -> None:
    # A mirrored scene, photographed anew, looks like the mirrored crop: content that moved left in L moves right in R.
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    coc = np.linspace(-3, 4, 64, dtype=np.float32)[None].repeat(48, axis=0)
    pair, mirrored = simulate_pair(image, coc), simulate_pair(image[:, ::-1].copy(), coc[:, ::-1].copy())
    crop = Crop(pair.left, pair.right, pair.target, np.arange(12, dtype=np.float32).reshape(3, 4)).mirrored()
    for ours, real in ((crop.left, mirrored.left), (crop.right, mirrored.right), (crop.target, mirrored.target)):
        assert np.abs(ours.astype(int) - real.astype(int)).max() <= 1
    assert np.abs(crop.left.astype(int) - mirrored.right.astype(int)).mean() > 3  # had the views not been swapped
    np.testing.assert_array_equal(crop.logits, np.arange(12).reshape(3, 4)[:, ::-1])


def test_upside_down_the_views_stay() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (12, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    coc = np.linspace(-3, 4, 48, dtype=np.float32)[:, None].repeat(48, axis=1)
    pair, turned = simulate_pair(image, coc), simulate_pair(image[::-1].copy(), coc[::-1].copy())
    crop = Crop(pair.left, pair.right, pair.target, np.zeros((3, 3), np.float32)).upside_down()
    for ours, real in ((crop.left, turned.left), (crop.right, turned.right)):
        assert np.abs(ours.astype(int) - real.astype(int)).max() <= 1


def test_augmentations_keep_a_crop_together() -> None:
    batches = _batches()
    kinds = set()
    for step in range(20):
        for place in range(4):
            crop = batches.crop(step, place)
            pixels = crop.left.astype(int)
            left_is_left = crop.left.max() < 100
            np.testing.assert_array_equal(crop.target.astype(int) - (200 if left_is_left else 100), pixels)
            sideways = not left_is_left
            channels = tuple(int(c) for c in np.argsort([np.ptp(pixels[:, 0, c]) for c in range(3)]))
            rises = np.ptp(crop.logits) > 0 and crop.logits[0, 0] > crop.logits[0, 1]
            assert rises == sideways  # the logits rise along x in the file
            kinds.add((sideways, bool(crop.logits[0, 0] > crop.logits[1, 0]), channels[-1]))
    assert {kind[:2] for kind in kinds} == {(a, b) for a in (False, True) for b in (False, True)}
    assert len({kind[2] for kind in kinds}) > 1


def test_batches_depend_on_seed_and_step_alone() -> None:
    whole = [_batches()[step] for step in range(4)]
    for options in ({"world": 2}, {"parts": 2}, {"world": 2, "parts": 2}):
        world, parts = options.get("world", 1), options.get("parts", 1)
        for step in range(4):
            shares = [_batches(**options, rank=rank)[step * parts + i] for rank in range(world) for i in range(parts)]
            for name in ("pair", "logits", "target"):
                joined = torch.cat([getattr(share, name) for share in shares])
                assert torch.equal(joined, getattr(whole[step], name))
    assert not torch.equal(_batches(seed=2)[0].pair, whole[0].pair)
    assert torch.equal(pickle.loads(pickle.dumps(_batches()))[3].pair, whole[3].pair)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_processes_prepare_the_same_batches() -> None:
    batches = stream(_batches(), 1, workers=1, pinned=False)
    for step in (1, 2, 3):
        assert torch.equal(next(batches).pair, _batches()[step].pair)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (EOFError("Caught EOFError in DataLoader worker process 0."), False),
        (RuntimeError("CUDA error"), False),
    ],
)
def test_a_killed_process_is_named_and_other_errors_are_not(error: Exception, named: bool) -> None:
    with pytest.raises(TrainingError if named else type(error)) as caught, killed_workers():
        raise error
    assert ("a process that prepares batches was killed" in str(caught.value)) == named


def test_an_epoch_has_each_pair_once() -> None:
    batches = _batches(flip=False, permute_channels=False)
    pairs = [int(batches.crop(number // 4, number % 4).left[0, 0, 2]) for number in range(20)]
    epochs = [pairs[i : i + 5] for i in range(0, 20, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_validation_sees_the_same_crops_of_all_pairs() -> None:
    first, second = (held_out_crops(_source(Pairs(5)), 10) for _ in range(2))
    assert [int(crop.left[0, 0, 2]) for crop in first] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(np.array_equal(a.left, b.left) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_batches_are_in_the_unit_range(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    images: list[NDArray[np.generic]] = [np.full((8, 8, 3), value, dtype) for value in (peak, 0, peak // 5)]
    batch = collate([Crop(*images, np.zeros((2, 2), np.float32))] * 2)
    assert batch.pair.shape == (2, 6, 8, 8)
    assert batch.pair.is_contiguous(memory_format=torch.channels_last)
    assert batch.pair[:, :3].eq(1).all()
    assert batch.pair[:, 3:].eq(0).all()
    torch.testing.assert_close(batch.target, torch.full((2, 3, 8, 8), 0.2))
    assert batch.logits.shape == (2, 1, 2, 2)


def test_pairs_that_cannot_be_trained_on() -> None:
    with pytest.raises(TrainingError, match="at least 32 x 32 px, the crop, got pair-0 of 24 x 33"):
        _source(Pairs(1), 32).crop(0, np.random.default_rng(0))
    with pytest.raises(TrainingError, match="with a target, got pair-0"):
        _source(Pairs(1, target=False)).crop(0, np.random.default_rng(0))
