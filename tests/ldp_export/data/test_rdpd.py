from pathlib import Path

import numpy as np
import pytest

from ldp_export.data import DataError, open_dataset
from tests.ldp_export.data.miniatures import check_promises, make_rdpd, read_rgb


def test_rdpd(tmp_path: Path) -> None:
    folder = make_rdpd(tmp_path, "test")
    dataset = open_dataset("rdpd", folder, "test")
    check_promises(dataset, 10)
    assert dataset.names()[:2] == ("seq_001-0000000", "seq_001-0000001")
    sample = dataset[3]
    assert sample.target is not None
    assert np.array_equal(sample.left, read_rgb(folder / "test_l/source/seq_002/0000001.png"))
    assert np.array_equal(sample.right, read_rgb(folder / "test_r/source/seq_002/0000001.png"))
    assert np.array_equal(sample.target, read_rgb(folder / "test_c/target/seq_002/0000001.png"))
    (folder / "test_r/source/seq_003/0000000.png").unlink()
    with pytest.raises(DataError, match=r"test_r/source: seq_003/0000000\.png missing"):
        open_dataset("rdpd", folder, "test")
