"""Files of the authors' form with random numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor


def save_torch(path: Path, state: Mapping[str, Tensor], wrapper: str = "", prefix: str = "", **more: Any) -> Path:
    """Writes a state dict under a wrapper, each name with a prefix, beside more that training leaves."""
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({wrapper: named, **more} if wrapper else named, path)
    return path


def save_keras(path: Path, state: Mapping[str, Tensor], layer: str = "conv2d", whole: bool = True) -> Path:
    """Writes an HDF5 file as Keras 2 does, with layers that have no weights between, and numbers that mean nothing."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        names = []
        for number in dict.fromkeys(int(key.partition(".")[0]) for key in state):
            empty, name = f"max_pooling2d_{number + 3}", f"{layer}_{57 - number}"
            root.create_group(empty).attrs["weight_names"] = np.zeros(0, "S1")
            group = root.create_group(name)
            arrays = {
                f"{name}/{key.partition('.')[2]}:0": tensor.numpy()
                for key, tensor in state.items()
                if int(key.partition(".")[0]) == number
            }
            for array_name, array in arrays.items():
                group.create_dataset(array_name, data=array)
            group.attrs["weight_names"] = np.array([n.encode() for n in arrays])
            names += [empty, name]
        root.attrs["layer_names"] = np.array([n.encode() for n in names])
    return path
