from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import tifffile

from ldp_runtime.batch.jobs import make_jobs
from ldp_runtime.batch.pairs import PairingError, check_listing, find_pairs, match_files, read_csv

ROOT = Path("photos")


def named(*files: str) -> dict[str, tuple[str, str]]:
    """The pairs among files: name -> left and right view."""
    listing = match_files(ROOT, map(PurePosixPath, files))
    return {str(p.name): (*(v.relative_to(ROOT).as_posix() for v in (p.left, p.right)),) for p in listing.pairs}  # type: ignore[misc]


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(
    ("left", "right", "name"),
    [
        ("a_L.png", "a_R.png", "a"),
        ("day/one/a.b_l.TIF", "day/one/a.b_r.tif", "day/one/a.b"),
        ("left/a.png", "right/a.png", "a"),
        ("s1/left/x/a_L.png", "s1/right/x/a_R.jpg", "s1/x/a"),
        ("Left/a.png", "Right/a.png", "a"),
        ("test_l/source/1P0A0917_L.png", "test_r/source/1P0A0917_R.png", "test/source/1P0A0917"),
        ("set/val_l/a.png", "set/val_r/a.png", "set/val/a"),
        ("motorcycle/left.png", "motorcycle/right.png", "motorcycle"),
        ("left.png", "right.png", "photos"),
        ("IMG_0001_Left.TIF", "IMG_0001_Right.TIF", "IMG_0001"),
        ("20240101_120000_000_left.pgm", "20240101_120000_000_right.pgm", "20240101_120000_000"),
        ("photo left.png", "photo right.png", "photo"),
        ("left-photo.png", "right-photo.png", "photo"),
        ("a left b.png", "a right b.png", "a b"),
        ("_MG_0001_L.png", "_MG_0001_R.png", "_MG_0001"),
        ("LEFT/photo_left.png", "RIGHT/photo_right.png", "photo"),
        ("inputL/1P0A1670.png", "inputR/1P0A1670.png", "1P0A1670"),
        ("test/inputL/a.png", "test/inputR/a.png", "test/a"),
        ("x/a-1.tif", "x/a-2.tif", "x/a"),
        ("a-1.dng", "a-2.dng", "a"),
    ],
)
def test_conventions(left: str, right: str, name: str) -> None:
    assert named(left, right) == {name: (left, right)}


@pytest.mark.parametrize(
    "files",
    [
        ("bright.png", "lefty.png", "righty.png"),
        ("a-1.png", "a-2.png", "a-3.png"),
        ("a-1.png", "a-2.png", "a-2.tif"),
        ("inputl/a.png", "inputr/a.png"),
    ],
)
def test_like_names_are_no_pairs(files: tuple[str, ...]) -> None:
    assert named(*files) == {}


def test_numbers_yield_to_other_names() -> None:
    assert named("left/a-1.png", "left/a-2.png", "right/a-1.png", "right/a-2.png") == {
        f"a-{i}": (f"left/a-{i}.png", f"right/a-{i}.png") for i in (1, 2)
    }


def test_files_that_hold_both_views(tmp_path: Path) -> None:
    touch(tmp_path, "a.CR3", "a.JPG", "b.dng", "c/d.CR2", "e-1.dng", "e-2.dng", "f.tif", "g.tif", "h.png")
    with tifffile.TiffWriter(tmp_path / "f.tif") as writer:
        for _ in range(2):
            writer.write(np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    listing = find_pairs(tmp_path, tmp_path / "out")
    found = {str(pair.name): (pair.left.name, pair.right and pair.right.name) for pair in listing.pairs}
    assert found == {
        "a": ("a.CR3", None),
        "b": ("b.dng", None),
        "c/d": ("d.CR2", None),
        "e": ("e-1.dng", "e-2.dng"),
        "f": ("f.tif", None),
    }
    assert listing.alone == (tmp_path / "g.tif", tmp_path / "h.png")
    jobs = make_jobs(listing.pairs, tmp_path / "out", image_format=None, map_format=None)
    assert [job.name for job in jobs] == ["a.tif", "b.tif", "c/d.tif", "e.tif", "f.tif"]
    abreast = find_pairs(tmp_path, tmp_path / "out", side_by_side=True)
    assert all(pair.right is None for pair in abreast.pairs)
    assert len(abreast.pairs) == 9


def test_views_of_different_pairs_are_not_matched() -> None:
    assert named("a_L.png", "b_R.png", "x/c_L.png", "y/c_R.png", "left/d.png", "e_r/d.png") == {}


def test_targets_are_no_views(tmp_path: Path) -> None:
    listing = match_files(
        ROOT,
        map(
            PurePosixPath,
            (
                *("test_l/source/2_L.png", "test_r/source/2_R.png", "test_c/target/1.png"),
                *("m/left.png", "m/right.png", "m/target.png", "n/target.png", "train_c/target/1.png"),
            ),
        ),
    )
    assert [str(pair.name) for pair in listing.pairs] == ["m", "test/source/2"]
    assert listing.alone == (ROOT / "n/target.png", ROOT / "train_c/target/1.png")


@pytest.mark.parametrize(
    "files",
    [
        ("a_L.png", "a_L.tif", "a_R.png"),
        ("a_L.png", "a_R.png", "a_R.jpg"),
        ("left/a_L.png", "left/a_R.png", "right/a_R.png"),
    ],
)
def test_ambiguous_files_are_named(files: tuple[str, ...]) -> None:
    with pytest.raises(PairingError, match="makes a pair with each of") as error:
        named(*files)
    for file in files:
        assert file in str(error.value)


def test_unpaired_files_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "b_L.png", "notes.txt", ".hidden_L.png", ".thumbs/c_L.png")
    listing = find_pairs(tmp_path, tmp_path / "out")
    assert listing.alone == (tmp_path / "b_L.png",)
    with pytest.raises(PairingError, match=r"b_L\.png belongs to no pair; .*--skip-unpaired"):
        check_listing(tmp_path, listing, skip_unpaired=False)
    check_listing(tmp_path, listing, skip_unpaired=True)
    (tmp_path / "a_R.png").unlink()
    with pytest.raises(PairingError, match="has no pairs"):
        check_listing(tmp_path, find_pairs(tmp_path, tmp_path / "out"), skip_unpaired=True)


def test_the_output_folder_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "out/a.png", "out/b_L.png")
    listing = find_pairs(tmp_path, tmp_path / "out")
    assert [str(pair.name) for pair in listing.pairs] == ["a"]
    assert listing.alone == ()


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a_L.png", "elsewhere/a_R.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    assert [str(pair.name) for pair in find_pairs(tmp_path / "in", tmp_path / "out").pairs] == ["link/a"]


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "x/1.png", "y/2.png", "left/b.tif", "right/b.tif")
    path = write_csv(
        tmp_path,
        "\ufeffleft, right, output\na_L.png,a_R.png,\nx/1.png,y/2.png,new/c.v2\n\nleft/b.tif,right/b.tif,d.JPG\n",
    )
    pairs = read_csv(path)
    assert [(pair.left, pair.right) for pair in pairs] == [
        (tmp_path / "a_L.png", tmp_path / "a_R.png"),
        (tmp_path / "x/1.png", tmp_path / "y/2.png"),
        (tmp_path / "left/b.tif", tmp_path / "right/b.tif"),
    ]
    jobs = make_jobs(pairs, tmp_path / "out", image_format="tiff", map_format=None)
    assert [job.name for job in jobs] == ["a.tif", "new/c.v2.tif", "d.JPG"]
    path.write_text("left,right\nx/1.png,y/2.png\nleft/b.tif,right/b.tif\n")
    jobs = make_jobs(read_csv(path), tmp_path / "out", image_format=None, map_format="npy")
    assert [job.name for job in jobs] == ["x/1.png", "b.tif"]
    path.write_text("left,right\nleft/b.tif,\n")
    assert [(pair.left, pair.right) for pair in read_csv(path)] == [(tmp_path / "left/b.tif", None)]
    path.write_text("left,right\nx/1.png,\n")
    assert read_csv(path, side_by_side=True)[0].right is None
    assert jobs[0].blur_map == tmp_path / "out/x/1_blur.npy"
    path.write_text("left,target,right\nx/1.png,a_L.png,y/2.png\nleft/b.tif,,right/b.tif\n")
    assert [pair.target for pair in read_csv(path)] == [tmp_path / "a_L.png", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a first line left,right"),
        ("left,rigth\n", "got left,rigth"),
        ("left;right\na_L.png;a_R.png\n", "got left;right; name the columns so, with commas between them"),
        ("left,right,left\n", "expected a first line"),
        ("left,right\na_L.png,\n", "line 2: expected a file in the column right"),
        ("left,right\na_L.png,b_R.png\n", "b_R.png does not exist"),
        ("left,right,target\na_L.png,a_R.png,b.png\n", "b.png does not exist"),
        ("left,right\na_L.png,a_R.png,more\n", "line 2: expected 2 cells"),
        ("left,right,output\na_L.png,a_R.png,../x\n", "below the output folder"),
        ("left,right,output\na_L.png,a_R.png,/x.png\n", "below the output folder"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "a_L.png", "a_R.png")
    with pytest.raises(PairingError) as error:
        read_csv(write_csv(tmp_path, text))
    assert words in str(error.value)
