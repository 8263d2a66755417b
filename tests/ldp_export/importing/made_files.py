"""Files of the authors' form with random numbers."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from ldp_export.network.published import PUBLISHED, bambnet, dpdnet, ifan, rdpd, restormer
from ldp_export.network.published.base import TAME_STD
from tests.ldp_export.network.published.states import random_pair, random_state


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


NARROW: dict[Any, dict[str, Any]] = {
    bambnet: {"WIDTH": 8},
    dpdnet: {"WIDTHS": (4, 8, 16, 32, 64)},
    ifan: {"WIDTHS": (8, 8, 16, 16)},
    rdpd: {"WIDTHS": (8, 16, 32, 64), "STATE": 128},
    restormer: {"CHANNELS": 8},
}
"""Module of a network -> constants that make it small enough for a test, with all of its layers."""


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Makes the networks of ``NARROW`` narrow."""
    for module, constants in NARROW.items():
        for constant, value in constants.items():
            patch.setattr(module, constant, value)


ENDS = {
    "bambnet": ("tail_hard.0.", "last"),
    "ifan": ("out_res.0.", "last"),
    "rdpd": ("23.", "last.2"),
    "restormer": ("output.", "last"),
}
"""Name of a network -> what the authors' names of its last layer begin with, and its name here."""


def draw(case: str, *, tame: bool = False) -> dict[str, Tensor]:
    """Random tensors by the authors' names.

    Args:
        case: Name of a network, "rdpd masked" for its form with a mask.
        tame: The last layer is scaled so that what it gives has about the contrast of an image.
    """
    name = case.split()[0]
    with torch.device("meta"):
        network = rdpd.RDPD(rdpd.MASKED) if case == "rdpd masked" else PUBLISHED[name].build()
    state = random_state(network.published_state())
    if name == "ifan":  # 17 filters in a row: near the identity
        weight, bias = state["F.3.weight"], state["F.3.bias"]
        state["F.3.weight"] = 0.03 * weight
        bias *= 0.3
        bias[: len(bias) // 7 * 6].view(-1, 3)[:, 1] += 1
    if tame and name in ENDS:
        network = type(network).fitting(state).eval()
        network.load_published_state(state)
        start, last = ENDS[name]
        given: list[Tensor] = []
        network.get_submodule(last).register_forward_hook(lambda layer, inputs, output: given.append(output))
        with torch.inference_mode():
            network.restore(random_pair(64, 96))
        for key in state:
            if key.startswith(start):
                state[key] = state[key] * (TAME_STD / given[0].std())
    return state


def save(folder: Path, case: str, state: dict[str, Tensor]) -> list[Path]:
    """Writes the files of a network as its authors have them; returns their paths."""
    match case.split()[0]:
        case "dddnet":
            parts = [{k[5:]: v for k, v in state.items() if k.startswith(part)} for part in ("estd.", "esti.")]
            parts[1]["decoderd.layer24.weight"] = torch.zeros(1)  # depth, which nothing here needs
            return [save_torch(folder / f"{i}.pkl", part, prefix="module.") for i, part in enumerate(parts)]
        case "dpdnet":
            return [save_keras(folder / "a.hdf5", state)]
        case "rdpd":
            return [save_keras(folder / "a.hdf5", state, "time_distributed", whole=False)]
        case "ifan":
            more = {"reblurNet.conv.weight": torch.zeros(1)}
            return [save_torch(folder / "a.pytorch", {**state, **more}, prefix="module.Network.")]
        case "bambnet":
            more = {"scheduler": {"milestones": Counter({60: 1})}, "optimizer": {"state": {0: {"step": 3}}}}
            return [save_torch(folder / "a.pth", state, "state_dict", **more)]
        case _:
            return [save_torch(folder / "a.pth", state, "params")]
