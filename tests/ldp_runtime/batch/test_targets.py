from pathlib import Path

import pytest

from ldp_runtime.batch.pairs import PairingError, find_pairs
from ldp_runtime.batch.targets import companion_targets, match_targets


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def test_targets_by_name_and_by_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"in/{side}/{i}.png" for side in ("inputL", "inputR", "inputC", "target") for i in (1, 2)))
    listing = find_pairs(tmp_path / "in", tmp_path / "out", targets=tmp_path / "in/target")
    assert listing.alone == ()
    targets = match_targets(listing.pairs, tmp_path / "in/target")
    assert {str(name): path.name for name, path in targets.items()} == {"1": "1.png", "2": "2.png"}
    touch(tmp_path, "other/x/2.tif", "ordered/8.png", "ordered/9.png", "none/1.txt")
    assert list(match_targets(listing.pairs, tmp_path / "other").values()) == [tmp_path / "other/x/2.tif"]
    by_order = match_targets(listing.pairs, tmp_path / "ordered")
    assert [path.name for path in by_order.values()] == ["8.png", "9.png"]
    for wrong, words in (("none", "holds the target of no pair"), ("in/inputL/1.png", "is not a folder")):
        with pytest.raises(PairingError, match=words):
            match_targets(listing.pairs, tmp_path / wrong)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("a/left.png", "a/right.png", "a/target.tif"), {"a": "a/target.tif"}),
        (("a_L.png", "a_R.png", "b_L.png", "b_R.png", "target/a.png"), {"a": "target/a.png"}),
        (("left/x/a.png", "right/x/a.png", "target/x/a.png"), {"x/a": "target/x/a.png"}),
        (("inputL/a.png", "inputR/a.png", "inputC/a.png"), {"a": "inputC/a.png"}),
        (("inputL/a.png", "inputR/a.png", "target/a.png"), {"a": "target/a.png"}),
        (("test_l/s/2_L.png", "test_r/s/2_R.png", "test_c/t/1.png"), {"test/s/2": "test_c/t/1.png"}),
        (("left.png", "right.png"), {}),
    ],
)
def test_targets_beside_their_views(tmp_path: Path, files: tuple[str, ...], expected: dict[str, str]) -> None:
    touch(tmp_path, *files)
    listing = find_pairs(tmp_path, tmp_path / "out")
    assert listing.alone == (), "a target is no view"
    found = companion_targets(listing.pairs, tmp_path)
    assert {str(name): path.relative_to(tmp_path).as_posix() for name, path in found.items()} == expected


def test_a_folder_with_the_targets_of_others_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a_L.png", "a_R.png", "target/b.png", "target/c.png")
    with pytest.raises(PairingError, match="holds the target of no pair"):
        companion_targets(find_pairs(tmp_path, tmp_path / "out").pairs, tmp_path)
