import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from skimage.io import imsave

from ldp_export.cli import main
from ldp_export.data import DataError, open_dataset
from ldp_export.simulation import scenes
from ldp_export.simulation.optics import SimulationError
from ldp_export.simulation.scenes import RenderJob, load_photos, read_photo_list, render, render_scene, render_shard
from ldp_export.simulation.shards import scenes_in_shard
from tests.ldp_export.data.miniatures import make_scenes

RECIPE_LIST = Path(__file__).parents[3] / "models" / "recipes" / "ldp_nano" / "photos.txt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    imsave(folder / "deep" / "b.png", data.coffee()[:300, :320], check_contrast=False)
    imsave(folder / "a.png", data.astronaut()[:300, :300], check_contrast=False)
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SCENES_A_SHARD", 2)


def test_a_shard_depends_on_its_number_and_seed_alone(photos: Path) -> None:
    loaded = load_photos(photos)
    shard = render_shard(5, loaded, scenes=2)
    assert {key: (value.shape, value.dtype.name) for key, value in shard.items()} == {
        "left": ((2, 256, 256, 3), "uint8"),
        "right": ((2, 256, 256, 3), "uint8"),
        "target": ((2, 256, 256, 3), "uint8"),
        "coc": ((2, 256, 256), "float16"),
        "disparity": ((2, 256, 256), "float16"),
    }
    again = render_scene(np.random.default_rng((scenes.SEED, 5, 1)), loaded)
    assert all(np.array_equal(shard[key][1], again[key]) for key in shard)
    other = render_shard(5, loaded, scenes=1, seed=scenes.SEED + 1)
    assert not np.array_equal(shard["left"][0], other["left"][0])
    assert float(np.abs(shard["coc"]).max()) <= scenes.MAX_RADIUS


def test_disparity_is_against_the_sign_of_the_circle_of_confusion(photos: Path) -> None:
    """Behind the focal plane content moves left in L and right in R, so x in L minus x in R is negative (Eq. 1)."""
    loaded = load_photos(photos)
    for index in range(4):
        scene = render_scene(np.random.default_rng((7, index)), loaded)
        assert (scene["coc"].astype(np.float32) * scene["disparity"].astype(np.float32) <= 0).all()


def test_rendering_resumes_and_completes(photos: Path, tmp_path: Path, small_shards: None) -> None:
    job = RenderJob(photos, None, tmp_path / "out", seed=3)
    counts: list[int] = []
    render(job, 3, progress=counts.append)
    assert sum(counts) == 3
    paths = sorted(job.output.iterdir())
    assert [path.name for path in paths] == ["scenes-0000.npz", "scenes-0001.npz"]
    assert [scenes_in_shard(path) for path in paths] == [2, 1]
    before = [path.stat().st_mtime_ns for path in paths]
    counts.clear()
    render(job, 4, progress=counts.append)
    assert counts == [2, 2]
    assert [path.stat().st_mtime_ns == then for path, then in zip(paths, before, strict=True)] == [True, False]
    expected = render_shard(1, load_photos(photos), scenes=2, seed=3)
    with np.load(paths[1]) as file:
        assert all(np.array_equal(file[key], expected[key]) for key in expected)
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    render(job, 4)
    assert scenes_in_shard(paths[0]) == 2


@pytest.mark.slow
def test_processes_share_the_work(photos: Path, tmp_path: Path) -> None:
    one, two = (RenderJob(photos, None, tmp_path / name, seed=3) for name in ("one", "two"))
    render(one, 66)
    render(two, 66, jobs=2)
    for name in ("scenes-0000.npz", "scenes-0001.npz"):
        with np.load(one.output / name) as a, np.load(two.output / name) as b:
            assert all(np.array_equal(a[key], b[key]) for key in a)


def test_lists_of_photographs(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# two\ndeep/b.png\n\nskimage:camera\n")
    names = read_photo_list(path)
    assert names == ("deep/b.png", "skimage:camera")
    loaded = load_photos(photos, names)
    assert np.array_equal(loaded[0], data.coffee()[:300, :320])
    assert np.array_equal(loaded[1], np.dstack([data.camera()] * 3))
    assert [photo.shape for photo in load_photos(photos)] == [(300, 300, 3), (300, 320, 3)]
    for wrong, message in ((("c.png",), "c.png under"), (("skimage:nobody",), "scikit-image")):
        with pytest.raises(SimulationError, match=message):
            load_photos(photos, wrong)
    with pytest.raises(SimulationError, match="got none"):
        load_photos(tmp_path / "nowhere")
    path.write_text("# nothing\n")
    with pytest.raises(SimulationError, match="got none"):
        read_photo_list(path)
    with pytest.raises(SimulationError, match="check the name"):
        read_photo_list(tmp_path / "nowhere.txt")
    (photos / "deep" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SimulationError, match="cannot be decoded"):
        load_photos(photos, ("broken.jpg",))
    (photos / "deep" / "broken.jpg").unlink()


def test_the_recipe_s_list() -> None:
    names = read_photo_list(RECIPE_LIST)
    assert len(names) == len(set(names)) == 52
    assert sum(name.startswith("skimage:") for name in names) == 10
    assert not any("motorcycle" in name for name in names)


def test_the_render_command(
    photos: Path, tmp_path: Path, small_shards: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scenes"
    assert main(["data", "render", str(photos), "-o", str(out), "--scenes", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.strip() == f"{out}: 5 scenes"
    validation, training = (open_dataset("simulated", out, split) for split in ("val", "train"))
    assert (len(validation), len(training)) == (4, 1)
    assert main(["data", "check", "simulated", str(out)]) == 0
    assert main(["data", "render", str(tmp_path / "nowhere"), "-o", str(out), "--scenes", "9"]) == 2
    assert main(["data", "render", str(photos), "-o", str(out), "--scenes", "0"]) == 2
    (tmp_path / "file").touch()
    assert main(["data", "render", str(photos), "-o", str(tmp_path / "file"), "--scenes", "1"]) == 2


def test_shards_as_a_data_set(tmp_path: Path) -> None:
    folder = make_scenes(tmp_path, shards=4)
    validation, training = (open_dataset("simulated", folder, split) for split in ("val", "train"))
    assert validation.names() == tuple(f"scene-{shard:04d}-{i:02d}" for shard in (0, 1) for i in range(3))
    assert training.names()[0] == "scene-0002-00" and len(training) == 6
    with np.load(folder / "scenes-0003.npz") as file:
        sample = training[4]
        assert sample.name == "scene-0003-01"
        assert np.array_equal(sample.left, file["left"][1])
        assert np.array_equal(sample.right, file["right"][1])
        assert sample.target is not None and np.array_equal(sample.target, file["target"][1])
        assert sample.coc is not None and np.array_equal(sample.coc, file["coc"][1])
        assert sample.disparity is not None and np.array_equal(sample.disparity, file["disparity"][1])
    assert validation.subsets() == {"blurred": frozenset(validation.names()), "sharp": frozenset()}
    sample.left[:] = 0  # a copy: the file stays as it is
    assert training[4].left.any()
    again = pickle.loads(pickle.dumps(training))
    assert np.array_equal(again[5].target, training[5].target)
    assert len(pickle.dumps(training)) < 4000, "arrays do not travel to worker processes"
    for index in (-1, 6):
        with pytest.raises(IndexError):
            training[index]
    with pytest.raises(DataError, match="one of train, val"):
        open_dataset("simulated", folder, "test")


def test_scenes_without_blur_are_a_subset(tmp_path: Path) -> None:
    make_scenes(tmp_path, shards=1)
    path = tmp_path / "scenes-0000.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["disparity"][1] = 0.9
    np.savez(path, **arrays)  # type: ignore[arg-type]
    subsets = open_dataset("simulated", tmp_path, "val").subsets()
    assert subsets == {"blurred": {"scene-0000-00", "scene-0000-02"}, "sharp": {"scene-0000-01"}}


def test_compressed_shards_are_read_too(tmp_path: Path) -> None:
    make_scenes(tmp_path, shards=1)
    path = tmp_path / "scenes-0000.npz"
    expected = open_dataset("simulated", tmp_path, "val")[2]
    with np.load(path) as file:
        arrays = dict(file)
    np.savez_compressed(path, **arrays)
    assert np.array_equal(open_dataset("simulated", tmp_path, "val")[2].left, expected.left)


def test_damaged_and_missing_shards(tmp_path: Path) -> None:
    make_scenes(tmp_path, shards=2)
    with pytest.raises(DataError, match="no shards, of the 2"):
        open_dataset("simulated", tmp_path, "train")
    path = tmp_path / "scenes-0001.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"coc": arrays["coc"][:, 1:]}))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="of one size"):
        open_dataset("simulated", tmp_path, "val")
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="no shard of rendered scenes"):
        open_dataset("simulated", tmp_path, "val")


RENDER = """
import os
import sys
import time
from pathlib import Path
from ldp_export.simulation import scenes

def forever(*_, **__):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(600)

if __name__ == "__main__":
    job = scenes.RenderJob(Path(sys.argv[1]), None, Path(sys.argv[2]), 1)
    os.write(1, f"{os.getpid()}\\n".encode())
    scenes.render(job, 130, jobs=2)
else:
    scenes.render_shard = forever  # in the processes that render
"""


@pytest.mark.usefixtures("heeds_sigint")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "how"), [("parent", signal.SIGKILL), ("child", signal.SIGKILL), ("parent", signal.SIGINT)]
)
def test_processes_that_render_end_with_the_run(photos: Path, tmp_path: Path, whom: str, how: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(RENDER)
    command = [sys.executable, str(script), str(photos), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        parent, *children = (int(run.stdout.readline()) for _ in range(3))
        os.kill(parent if whom == "parent" else children[0], how)
        assert run.stdout.read() == ""  # ends when all of them have closed it
        error = run.stderr.read()
    if whom == "child":
        assert "SimulationError: a process that renders was killed, perhaps for want of memory; run the same" in error
    elif how == signal.SIGINT:
        assert "KeyboardInterrupt" in error
    assert list((tmp_path / "out").iterdir()) == []
