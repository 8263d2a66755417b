import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ldp_export.data import open_dataset
from ldp_export.evaluation.paper import load_table
from ldp_export.evaluation.report import Score, paper_rows, summarise
from ldp_export.evaluation.score import score_dataset
from ldp_runtime.images.quality import psnr, ssim
from tests.ldp_export.data.miniatures import DPD_BLUR_TEST, make_dpd_blur
from tests.ldp_export.evaluation.test_score import FakeRestorer


def test_summaries() -> None:
    scores = [
        Score("a", {"psnr": 20.0, "mae": 0.1, "mse_rel": 0.1, "blur_map_accuracy": 0.5}, (0, 0, 50, 100)),
        Score("b", {"psnr": 40.0, "mae": 0.3, "mse_rel": 0.01}, (30, 40, 0, 0)),
    ]
    figures = summarise(scores)
    assert figures["psnr"] == 30
    assert figures["mae"] == pytest.approx(0.2)
    assert figures["mse_rel"] == pytest.approx(10**-1.5), "of the mean PSNR, as the paper has it"
    assert figures["blur_map_accuracy"] == 0.5
    assert figures["blur_map_balanced_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert "blur_map_balanced_accuracy" not in summarise(scores[:1]), "one class alone"
    assert summarise([Score("c", {"psnr": math.inf}), scores[0]])["psnr"] == 60, "equal images count 100 dB"


def test_reports(tmp_path: Path) -> None:
    folder = make_dpd_blur(tmp_path, "test", DPD_BLUR_TEST[6:10], size=(12, 16))
    dataset = open_dataset("dpd-blur", folder, "test")
    sheets: list[np.ndarray] = []
    report = score_dataset(FakeRestorer(), dataset, "fake model", sheet=lambda number, image: sheets.append(image))
    rows = list(csv.DictReader(report.to_csv().splitlines()))
    assert [row["name"] for row in rows] == list(dataset.names())
    assert [row["subset"] for row in rows] == ["outdoor", "outdoor", "indoor", "indoor"]
    sample = dataset[1]
    assert sample.target is not None
    expected = psnr(sample.left + np.uint16(1), sample.target, data_range=65535)
    assert float(rows[1]["psnr"]) == pytest.approx(expected, rel=1e-5)
    assert float(rows[1]["ssim"]) == pytest.approx(
        ssim(sample.left + np.uint16(1), sample.target, data_range=65535), abs=1e-5
    )
    assert "ai1" not in rows[0]

    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {name: group["images"] for name, group in value["groups"].items()} == {"all": 4, "outdoor": 2, "indoor": 2}
    indoor = value["groups"]["indoor"]
    assert indoor["figures"]["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows[2:]]), abs=1e-4)
    printed = load_table(1).find("Ours (Large)").values
    assert indoor["paper"][1]["figures"]["psnr"] == printed["outdoor_psnr"] == 29.88, "its headings are exchanged"
    assert value["groups"]["all"]["paper"][0]["figures"]["psnr"] == 26.91

    text = report.to_markdown()
    assert text.startswith("# fake model on dpd-blur, test")
    assert "| paper, Ours (Small) (Table 1) | 26.91 | 0.8310 | 0.0320 | 0.0450 |" in text
    assert "## indoor: 2 pairs" in text and text.count("| center view |") == 3
    assert len(sheets) == 1
    assert sheets[0].dtype == np.uint8 and sheets[0].shape[2] == 3


def test_paper_rows() -> None:
    assert [row.label for row in paper_rows("ddd-syn")] == ["Ours (Small)", "Ours (Large)"]
    assert paper_rows("rdpd")[1].values["psnr"] == 33.44
    assert paper_rows("dpd-disp")[0].values["ai2"] == 0.106
    assert paper_rows("simulated") == paper_rows("pixel-dp") == []
