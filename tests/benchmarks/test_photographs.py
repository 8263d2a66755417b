from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.photographs import AS_IS, BLANK, CHECKED, PERFECT, measure, restorers, to_markdown
from ldp_export.evaluation.score import image_scores, registered_with
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.images.photo import write_pixels
from ldp_runtime.result import Result

ROOT = Path(__file__).parents[2]
SIZE = (40, 48, 3)


class Copy:
    """Gives the left view back."""

    backend, precision = "copy", "fp32"

    def __call__(self, left: np.ndarray, right: np.ndarray) -> Result:
        empty = {"blur_map": None, "blur_logits": None, "timings": {}}
        return Result(restored=left, backend="copy", precision="fp32", **empty)


def write_scene(folder: Path, *names: str) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(names))
    pictures = {name: rng.integers(0, 256, SIZE).astype(np.uint8) for name in names}
    for name, pixels in pictures.items():
        write_pixels(folder / f"{name}.png", pixels)
    return pictures


def test_gains_by_hand_and_their_tables(tmp_path: Path) -> None:
    first = write_scene(tmp_path / "canon/1", "left", "right", "target", "theirs")
    write_scene(tmp_path / "canon/2", "left", "right", "target")
    write_scene(tmp_path / "pixel/3", "left", "right", "target")
    rows = measure(tmp_path, {AS_IS: Copy()}, "Theirs", "theirs.png")
    assert [(row.name, row.group, row.way) for row in rows] == [
        ("canon-1", "canon", AS_IS),
        ("canon-1", "canon", "Theirs"),
        ("canon-1", "canon", PERFECT),
        ("canon-2", "canon", AS_IS),
        ("canon-2", "canon", PERFECT),
        ("pixel-3", "pixel", AS_IS),
        ("pixel-3", "pixel", PERFECT),
    ]
    for row, name in zip(rows[:2], ("left", "theirs"), strict=True):
        registered = registered_with(first[name], first["target"], 255.0)
        scores = image_scores(first[name], first["target"], 255.0, photographs=True, registered=registered)
        assert set(row.gain) == {"psnr", "matched_psnr", "aligned_psnr", "registered_psnr"}
        for kind, gain in row.gain.items():
            assert gain == pytest.approx(scores[kind] - row.center[kind], abs=1e-3)
    report = Report.new("photographs", {"origin": "here", "rows": [vars(row) for row in rows]})
    text = to_markdown(report)
    mean = (rows[0].gain["psnr"] + rows[3].gain["psnr"]) / 2
    worst = min(rows[0].gain["psnr"], rows[3].gain["psnr"])
    (line,) = (line for line in text.splitlines() if line.startswith("| canon, 2 | ") and AS_IS in line)
    assert f"| {mean:+.2f} |" in line and line.endswith(f"| {worst:+.2f} |")
    assert "| canon, 1 | Theirs |" in text and "Pictures: here." in text
    assert text.count("| canon-1 |") == 3


def test_a_pair_without_a_target_is_refused(tmp_path: Path) -> None:
    write_scene(tmp_path / "1", "left", "right")
    with pytest.raises(BenchmarkError, match="expected a target for 1, got none"):
        measure(tmp_path, {AS_IS: Copy()})


def test_a_blank_map_is_another_way() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, SIZE).astype(np.uint8) for _ in range(2))
    ways = restorers(Bundle.load(ROOT / "models/ldp-nano"))
    assert list(ways) == [AS_IS, BLANK, CHECKED]
    assert not ways[BLANK](left, right).blur_logits.any()
    assert ways[AS_IS](left, right).blur_logits.any()
