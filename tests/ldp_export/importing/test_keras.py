"""HDF5 files of Keras: order in place of names, and nothing from outside the file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ldp_export.importing.keras import read_keras
from ldp_export.importing.state import WeightsError
from tests.ldp_export.importing.made_files import save_keras

STATE = {"0.kernel": torch.rand(3, 3, 6, 4), "0.bias": torch.rand(4), "1.kernel": torch.rand(1, 1, 4, 3)}


@pytest.mark.parametrize("whole", [True, False])
def test_layers_with_weights_are_numbered_in_order(tmp_path: Path, whole: bool) -> None:
    state = read_keras(save_keras(tmp_path / "a.h5", STATE, whole=whole), "give a file")
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def kernel(file: h5py.File) -> tuple[h5py.Group, str]:
    group = next(g for g in file["model_weights"].values() if len(g.attrs["weight_names"]) == 2)
    return group[group.name.rpartition("/")[2]], "kernel:0"


def test_data_outside_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 3 * 3 * 6 * 4))
    other = save_keras(tmp_path / "other.h5", STATE)
    for i, put in enumerate(
        (
            lambda group, name: group.create_dataset(
                name, (3, 3, 6, 4), "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
            ),
            lambda group, name: group.__setitem__(name, h5py.ExternalLink(str(other), "model_weights")),
            lambda group, name: group.__setitem__(name, h5py.SoftLink("/model_weights")),
            lambda group, name: group.create_dataset(name, data=np.array([b"text"])),
        )
    ):
        path = save_keras(tmp_path / f"{i}.h5", STATE)
        with h5py.File(path, "a") as file:
            group, name = kernel(file)
            del group[name]
            put(group, name)
        with pytest.raises(WeightsError, match="in the file, got") as caught:
            read_keras(path, "give a file")
        assert str(caught.value).endswith("; give a file")


def test_huge_arrays_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = save_keras(tmp_path / "a.h5", STATE)
    with h5py.File(path, "a") as file:
        group, name = kernel(file)
        del group[name]
        group.create_dataset(name, (1 << 20, 1 << 20), "f4", chunks=(64, 64))
    with pytest.raises(WeightsError, match="bytes of weights, got more"):
        read_keras(path, "give a file")


def test_other_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"\x89HDF\r\n\x1a\nno more")
    with pytest.raises(WeightsError, match="expected an HDF5 file of Keras, got one that h5py cannot read"):
        read_keras(tmp_path / "no.h5", "give a file")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(WeightsError, match="expected the attribute layer_names of Keras, got none"):
        read_keras(tmp_path / "empty.h5", "give a file")
