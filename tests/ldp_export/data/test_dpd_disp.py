from pathlib import Path

import numpy as np
import pytest

from ldp_export.data import DataError, open_dataset
from tests.ldp_export.data.miniatures import check_promises, make_dpd_disp, read_rgb


def test_dpd_disp(tmp_path: Path) -> None:
    folder = make_dpd_disp(tmp_path)
    dataset = open_dataset("dpd-disp", folder, "test")
    check_promises(dataset, 2)
    sample = dataset[1]
    assert sample.name == "002"
    assert sample.target is None and sample.disparity is None
    assert sample.relative_disparity is not None
    assert sample.relative_disparity.dtype == np.float32
    assert 0 <= sample.relative_disparity.min() < sample.relative_disparity.max() <= 1
    assert np.array_equal(sample.left, read_rgb(folder / "002_L.jpg"))
    with pytest.raises(DataError, match=f"give {folder}"):
        open_dataset("dpd-disp", tmp_path, "test")
    (folder / "001_D.TIF").unlink()
    with pytest.raises(DataError, match=r"\*_D: 001 missing"):
        open_dataset("dpd-disp", folder, "test")
