"""Weights in HDF5 files of Keras 2, whole models or weights alone.

Keras numbers layers by how many of a kind the process had made before, so that names say nothing. Their order does: it
is an attribute of the file. Only data that lies in the file itself is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldp_export.importing.state import MAX_FILE_BYTES, State, WeightsError

MAX_LAYERS = 1000
MAX_DIMENSIONS = 4
"""Of a convolution's kernel."""


def read_keras(path: Path, fix: str) -> State:
    """Reads the layers that have weights, in order: ``0.kernel``, ``0.bias``, ``1.kernel``; axes as in Keras.

    Args:
        path: The file, of which ``file_hash`` has checked the size.
        fix: What the user should give, the end of an error.

    Raises:
        WeightsError: h5py is missing, or the file is no such file.
    """
    try:
        import h5py
    except ImportError:
        raise WeightsError(
            "expected h5py for a file of Keras, got none; install it with: pip install 'ldp[import]'"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            return _read_layers(h5py, file, path, fix)
    except WeightsError:
        raise
    except Exception as error:  # h5py raises what it likes
        raise WeightsError(
            f"{path}: expected an HDF5 file of Keras, got one that h5py cannot read ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason'}); {fix}"
        ) from error


def _read_layers(h5py: Any, file: Any, path: Path, fix: str) -> State:
    root = _child(h5py, file, "model_weights", path, fix) if "model_weights" in file else file
    state: State = {}
    size = number = 0
    for layer in _names(root, "layer_names", path, fix):
        group = _child(h5py, root, layer, path, fix)
        weights = _names(group, "weight_names", path, fix)
        for name in weights:
            data = _child(h5py, group, name, path, fix)
            plain = isinstance(data, h5py.Dataset) and data.external is None and not data.is_virtual
            if not plain or data.dtype.kind != "f" or len(data.shape) > MAX_DIMENSIONS:
                raise WeightsError(f"{path}: expected {name} as an array of floats in the file, got {data}; {fix}")
            size += 4 * int(np.prod(data.shape, dtype=object))
            if size > MAX_FILE_BYTES:
                raise WeightsError(f"{path}: expected at most {MAX_FILE_BYTES} bytes of weights, got more; {fix}")
            key = f"{number}.{name.rpartition('/')[2].partition(':')[0]}"
            if key in state:
                raise WeightsError(f"{path}: expected one array of each name, got {name} twice; {fix}")
            state[key] = torch.from_numpy(np.asarray(data, np.float32))
        number += bool(weights)
    return state


def _names(group: Any, attribute: str, path: Path, fix: str) -> list[str]:
    if attribute not in group.attrs:
        raise WeightsError(f"{path}: expected the attribute {attribute} of Keras, got none at {group.name}; {fix}")
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(group.attrs[attribute])]
    if len(names) > MAX_LAYERS:
        raise WeightsError(f"{path}: expected at most {MAX_LAYERS} {attribute}, got {len(names)}; {fix}")
    return names


def _child(h5py: Any, group: Any, name: str, path: Path, fix: str) -> Any:
    """What has a name such as ``conv2d_1/kernel:0`` below a group; links to elsewhere are not followed."""
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part not in ("", ".", "..") else None
        if type(link) is not h5py.HardLink:
            raise WeightsError(f"{path}: expected {name} in the file, got {'a link' if link else 'nothing'}; {fix}")
        group = group[part]
    return group
