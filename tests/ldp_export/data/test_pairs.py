from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldp_export.data import DataError, find_kind, iterate, open_dataset
from ldp_export.data.layout import check_kind
from ldp_runtime.errors import ImageError
from tests.ldp_export.data.miniatures import noise, write_image

SIZE = (12, 16, 3)


def write_pair(folder: Path, *names: str) -> list[np.ndarray]:
    """Pictures of random pixels under these names."""
    pictures = [noise(SIZE, seed) for seed, _ in enumerate(names)]
    for name, picture in zip(names, pictures, strict=True):
        write_image(folder / name, picture)
    return pictures


def test_a_folder_with_and_without_targets(tmp_path: Path) -> None:
    pictures = write_pair(tmp_path, "near/a/left.png", "near/a/right.png", "near/a/target.png")
    write_pair(tmp_path, "far/b_L.png", "far/b_R.png", "far/other.png")
    dataset = open_dataset("pairs", tmp_path, "test")
    assert dataset.names() == ("far-b", "near-a")
    assert dataset.subsets() == {"near": frozenset({"near-a"}), "far": frozenset({"far-b"})}
    without, sample = iterate(dataset)
    assert without.target is None and without.name == "far-b"
    assert sample.target is not None
    for got, expected in zip((sample.left, sample.right, sample.target), pictures, strict=True):
        np.testing.assert_array_equal(got, expected)
    scan = check_kind(find_kind("pairs"), tmp_path, "test")
    assert (scan.pairs, scan.problems) == (2, ())
    assert [words in remark for words, remark in zip(("far/other.png", "1 of 2 pairs"), scan.remarks, strict=True)]
    with pytest.raises(IndexError):
        dataset[2]


def test_one_folder_has_no_parts(tmp_path: Path) -> None:
    write_pair(tmp_path, "x/left/a.png", "x/right/a.png", "x/target/a.png")
    dataset = open_dataset("pairs", tmp_path, "test")
    assert dataset.subsets() == {} and dataset[0].target is not None


def test_a_list_of_pairs(tmp_path: Path) -> None:
    pictures = write_pair(tmp_path, "1.png", "2.png", "3.png")
    path = tmp_path / "pairs.csv"
    path.write_text("left,right,target,output\n1.png,2.png,3.png,scene/x\n2.png,1.png,,y\n")
    dataset = open_dataset("pairs", path, "test")
    assert dataset.names() == ("scene-x", "y")
    np.testing.assert_array_equal(dataset[0].target, pictures[2])
    assert dataset[1].target is None


def test_photos_of_a_turned_camera_lie_on_their_side(tmp_path: Path) -> None:
    """EXIF orientation 6: the upright picture is turned by 90 degrees, and its disparity runs down."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for seed, name in enumerate(("left", "right", "target")):
        image = Image.fromarray(noise(SIZE, seed).astype(np.uint8))
        image.save(tmp_path / f"{name}.png", exif=exif)
    sample = open_dataset("pairs", tmp_path, "test")[0]
    assert sample.left.shape == SIZE
    assert sample.target is not None and sample.target.shape == SIZE
    stored = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("left", "right", "target")}
    np.testing.assert_array_equal(sample.target, stored["target"][::-1])
    assert {sample.left.tobytes(), sample.right.tobytes()} == {
        stored[name][::-1].tobytes() for name in ("left", "right")
    }


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for source, words in (
        (tmp_path, "has no pairs"),
        (tmp_path / "none.csv", "expected a folder with pairs or a .csv"),
        (tmp_path / "none", "expected a folder with pairs or a .csv"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset("pairs", source, "test")
    (tmp_path / "empty.csv").write_text("left,right\n")
    with pytest.raises(DataError, match="lists no pairs"):
        open_dataset("pairs", tmp_path / "empty.csv", "test")
    with pytest.raises(DataError, match="expected a split of pairs, one of test"):
        open_dataset("pairs", tmp_path, "train")
    write_pair(tmp_path, "left.png", "right.png")
    write_image(tmp_path / "target.png", noise((10, 16, 3), 0))
    with pytest.raises(ImageError, match=r"target.png is 16 x 10 px; expected 16 x 12 px"):
        open_dataset("pairs", tmp_path, "test")[0]


def test_pairs_of_one_name_would_share_a_target(tmp_path: Path) -> None:
    names = [f"{folder}/{file}.png" for folder in ("a", "b") for file in ("left", "right", "target")]
    write_pair(tmp_path, *names)
    rows = (",".join(str(tmp_path / name) for name in names[i : i + 3]) for i in (0, 3))
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["left,right,target", *rows]))
    with pytest.raises(DataError, match=r"expected a name of its own for each pair, got .* for 2"):
        open_dataset("pairs", path, "test")
