import os
import re
import shutil
from pathlib import Path

import pytest

from ldp_runtime.bundle.find import find_bundle, list_bundles, search_folders
from ldp_runtime.errors import BundleError


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    """A folder that a bundle may be found in by its name; nothing is read but the name."""
    folder = tmp_path / "elsewhere" / "tiny"
    folder.mkdir(parents=True)
    (folder / "bundle.json").touch()
    return folder


def test_a_folder_or_a_name_is_found(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(str(pristine)) == pristine
    monkeypatch.setenv("LDP_BUNDLES", os.pathsep.join([str(tmp_path / "none"), str(pristine.parent)]))
    assert find_bundle("tiny") == pristine
    shutil.copytree(pristine, tmp_path / "models" / "tiny")
    shutil.copytree(pristine, tmp_path / "models" / "second")
    assert find_bundle("tiny") == pristine, "LDP_BUNDLES comes before ./models"
    assert find_bundle("second") == Path("models", "second")
    assert {"tiny", "second"} <= set(list_bundles())
    monkeypatch.delenv("LDP_BUNDLES")
    assert find_bundle("tiny") == Path("models", "tiny")


def test_each_folder_is_searched_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("LDP_BUNDLES", os.pathsep.join(["a", "models", str(tmp_path / "a")]))
    assert search_folders()[:2] == [Path("a"), Path("models")]
    assert Path("models") not in search_folders()[2:]


@pytest.mark.parametrize("name", ["nowhere", "..", "models/none", ""])
def test_a_missing_bundle_says_where_it_was_looked_for_and_what_there_is(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDP_BUNDLES", str(pristine.parent))
    with pytest.raises(BundleError) as caught:
        find_bundle(name)
    assert re.fullmatch(
        rf"expected a folder with bundle\.json or the name of a bundle, got {name!r}; "
        rf"looked in {re.escape(str(pristine.parent))}, models, .*; found there: .*tiny.*; "
        r"give one of these, or set LDP_BUNDLES to the folder that holds yours",
        str(caught.value),
    )


def test_a_name_too_long_for_the_system_is_an_error_of_ours() -> None:
    with pytest.raises(BundleError, match="File name too long"):
        find_bundle("a" * 5000)
