import json
from pathlib import Path

import numpy as np

from ldp_runtime import Deblurrer
from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.visualize import colour_blur_map
from tests.ldp_runtime.conftest import Run, check_error, files, scene


def test_blur_map(run: Run, pair: tuple[str, str], tmp_path: Path, deblurrer: Deblurrer) -> None:
    expected = deblurrer.blur_map(scene(shift=1), scene(shift=-1)).blur_map
    code, out, err = run("blur-map", *pair, "-o", tmp_path / "map.npy", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["outputs"] == {"blur_map": str(tmp_path / "map.npy")}
    assert "deblur" not in json.loads(out)["seconds"]
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), expected)
    assert run("blur-map", *pair, "-o", tmp_path / "map.png", "-q") == (0, "", "")
    np.testing.assert_array_equal(read_photo(tmp_path / "map.png").pixels, colour_blur_map(expected))


def test_an_output_that_cannot_be_written(run: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    before = files(tmp_path)
    for out, words in (
        (tmp_path / "missing" / "out.png", "missing does not exist"),
        (tmp_path / "map.txt", "'.txt'"),
        (pair[1], "right.png is an input"),
    ):
        check_error(run("blur-map", *pair, "-o", out), words)
    assert files(tmp_path) == before


def test_without_a_blur_map_there_is_none_to_show(
    run: Run, pair: tuple[str, str], tmp_path: Path, bundle_without_clip: Path
) -> None:
    before = files(tmp_path)
    refused = run("blur-map", *pair, "-o", tmp_path / "map.png", "--bundle", bundle_without_clip)
    check_error(refused, "bundle 'mapless' has no blur map: its network reads none")
    assert files(tmp_path) == before
