from pathlib import Path

import cv2
import numpy as np
import pytest

from ldp_export.data import DataError, open_dataset
from ldp_export.data import pixel_dp as pixel_dp_module
from ldp_runtime.images.linear import srgb_to_linear
from tests.ldp_export.data.miniatures import check_promises, make_pixel_dp


def test_pixel_dp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_dp_module, "FIELD", (8, 16))
    folder = make_pixel_dp(tmp_path)
    dataset = open_dataset("pixel-dp", folder, "test")
    check_promises(dataset, 1)
    sample = dataset[0]
    assert sample.left.shape == (8, 16, 3) and sample.left.dtype == np.uint16
    assert (sample.left == sample.left[..., :1]).all()
    raw = cv2.imread(str(folder / "001_left.png"), cv2.IMREAD_UNCHANGED)
    assert raw is not None
    light = np.clip(raw.astype(np.float64)[2:10, 2:18] - 1024, 0, None) / (2**14 - 1)
    decoded = [srgb_to_linear(view[..., 0].astype(np.float32) / 65535) for view in (sample.left, sample.right)]
    assert decoded[0] == pytest.approx(light, abs=1e-4)
    # Both raw views are the same; the sheet is half as bright in the right one, whose light is doubled.
    assert decoded[1] == pytest.approx(np.minimum(2 * light, 1), abs=1e-3)
    assert sample.target is not None and sample.relative_disparity is not None
    target = cv2.imread(str(folder / "gt_all_in_focus_im/001_gt.png"), cv2.IMREAD_UNCHANGED)
    assert target is not None
    restored = srgb_to_linear(sample.target[..., 0].astype(np.float32) / 65535)
    assert restored == pytest.approx(target[2:10, 2:18] / 65535, abs=1e-4)
    (folder / "calibration/white_sheet_left.png").unlink()
    with pytest.raises(DataError, match=r"calibration: calibration/white_sheet_left\.png missing"):
        open_dataset("pixel-dp", folder, "test")
