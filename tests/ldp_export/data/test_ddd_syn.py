from pathlib import Path

import numpy as np
import pytest

from ldp_export.data import DataError, open_dataset
from tests.ldp_export.data.miniatures import check_promises, make_ddd_syn, read_rgb


def test_ddd_syn(tmp_path: Path) -> None:
    folder = make_ddd_syn(tmp_path, {"training": (1, 2, 1001), "testing": (6001, 6002), "testing1": (6001,)})
    train, test = (open_dataset("ddd-syn", folder, split) for split in ("train", "test"))
    check_promises(train, 3)
    check_promises(test, 3)
    assert train.names() == ("0001", "0002", "1001")
    assert test.names() == ("6001", "6002", "6001_h")
    sample = test[2]
    assert sample.target is not None and sample.disparity is not None
    assert np.array_equal(sample.left, read_rgb(folder / "testing1/dp/6001_l.png"))
    assert np.array_equal(sample.right, read_rgb(folder / "testing1/dp/6001_r.png"))
    assert np.array_equal(sample.target, read_rgb(folder / "testing1/gt/6001_m.png"))
    assert sample.disparity[0, 0] == 6001 % 7 - 3
    assert sample.disparity[7, 11] == pytest.approx(6001 % 7 - 3 + 95 / 96, abs=1e-6)
    (folder / "testing/gt/6002_m.png").unlink()
    with pytest.raises(DataError, match=r"testing/gt/\*_m.png: 6002 missing"):
        open_dataset("ddd-syn", folder, "test")
    with pytest.raises(DataError, match="one of train, test, got 'val'"):
        open_dataset("ddd-syn", folder, "val")
