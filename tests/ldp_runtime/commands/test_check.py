"""``ldp check``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ldp_runtime.images.photo import read_photo, write_pixels
from tests.ldp_runtime.conftest import Run

SAMPLE = Path(__file__).parents[3] / "samples/motorcycle"


def test_a_good_pair(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "disparity.png"
    code, out, err = run("check", SAMPLE / "left.png", SAMPLE / "right.png", "--disparity", picture)
    assert (code, err) == (0, "")
    assert "alignment    +0.00 px" in out
    assert "nothing wrong was found" in out and "scale        1\n" in out
    assert read_photo(picture).pixels.shape == (500, 741, 3)
    assert len(np.unique(read_photo(picture).pixels.reshape(-1, 3), axis=0)) > 20


def test_faults_are_named(run: Run, tmp_path: Path) -> None:
    left, right = (read_photo(SAMPLE / f"{name}.png").pixels for name in ("left", "right"))
    views = tmp_path / "left.png", tmp_path / "right.png"
    write_pixels(views[0], left[3:])
    write_pixels(views[1], right[:-3])
    code, out, _ = run("check", *views, "--json")
    fields = json.loads(out)
    assert code == 0
    (fault,) = fields["faults"]
    assert fault["kind"] == "shift" and str(views[1]) in fault["what"] and fault["correction"] and not fault["refused"]
    assert abs(fields["shift_across_px"] - 3) < 0.15
    assert "crop both alike" in run("check", *views)[1]
    assert run("check", views[0], tmp_path / "none.png")[0] == 2


def test_both_views_in_one_file(run: Run, tmp_path: Path) -> None:
    left, right = (read_photo(SAMPLE / f"{name}.png").pixels for name in ("left", "right"))
    abreast = tmp_path / "both.png"
    write_pixels(abreast, np.concatenate([left, right], axis=1))
    apart, together = (
        json.loads(run("check", *files, "--json")[1])
        for files in ((SAMPLE / "left.png", SAMPLE / "right.png"), (abreast, "--side-by-side"))
    )
    assert apart == together
    assert run("check", abreast)[0] == 2


def test_the_scale_is_that_of_the_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    """A bundle that knows a smaller range of radii restores the same pair at a smaller scale."""
    files = SAMPLE / "left.png", SAMPLE / "right.png"
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    scales = []
    for blur_range in (20, 5):
        (tmp_path / "bundle.json").write_text(json.dumps({**manifest, "blur_range": blur_range}))
        scales.append(json.loads(run("check", *files, "--bundle", tmp_path, "--json")[1])["scale"])
    assert scales == ["1", "1/2"]
