"""Imported networks compute what their authors' code computes."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldp_export.importing.published import IMPORTABLE, import_published
from ldp_export.importing.state import WeightsError
from ldp_export.network.published import PUBLISHED
from ldp_export.network.published.rdpd import MASKED, RDPD
from tests.ldp_export.importing.authors import AUTHORS, Reading
from tests.ldp_export.importing.made_files import save_keras, save_torch
from tests.ldp_export.network.published.states import random_state

CASES = [*AUTHORS, "rdpd masked"]


def draw(case: str) -> dict[str, Tensor]:
    name = case.split()[0]
    with torch.device("meta"):
        network = RDPD(MASKED) if case == "rdpd masked" else PUBLISHED[name].build()
    state = random_state(network.published_state())
    if name == "ifan":  # 17 filters in a row: near the identity
        weight, bias = state["F.3.weight"], state["F.3.bias"]
        state["F.3.weight"] = 0.1 * weight
        bias[: 17 * 2 * 128 * 3].view(-1, 3)[:, 1] += 1
    return state


def save(folder: Path, case: str, state: dict[str, Tensor]) -> list[Path]:
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


@pytest.mark.parametrize("case", CASES)
def test_an_imported_network_computes_what_its_authors_code_computes(case: str, tmp_path: Path) -> None:
    name, state = case.split()[0], draw(case)
    paths = save(tmp_path, case, state)
    model = import_published(PUBLISHED[name], paths)
    pair = torch.rand(1, 6, 32, 48, generator=torch.Generator().manual_seed(1))
    views_swapped = torch.cat([pair[:, 3:], pair[:, :3]], 1)
    reading = Reading({key: value.double() for key, value in state.items()})
    with torch.inference_mode():
        restored = model.network.double()(pair)
        expected, swapped, turned = (
            AUTHORS[name](reading, p.double()) for p in (pair, views_swapped, pair[:, [2, 1, 0, 5, 4, 3]])
        )
    assert not reading.unread
    scale = float(expected.std())
    assert 1e-3 < scale < 1e3
    error = float((restored - expected).abs().max())
    assert error < 1e-5 * max(1, float(expected.abs().max())), f"{error}"
    for other in (swapped, turned.flip(1)):  # the wrong view order, the wrong colors
        assert (other - expected).abs().max() > 1e-3 * scale
    assert model.origin is not None and model.origin.kind == name
    (file,) = model.origin.files
    assert (file.name, file.sha256) == (paths[0].name, hashlib.sha256(paths[0].read_bytes()).hexdigest())
    assert model.network.config.halo is None or (name in ("dpdnet", "ifan", "rdpd") and case != "rdpd masked")


@pytest.mark.parametrize("name", sorted(set(IMPORTABLE) - set(AUTHORS)))
def test_files_of_the_others_load_whole(name: str, tmp_path: Path) -> None:
    """What these compute is tested beside them."""
    state = draw(name)
    model = import_published(PUBLISHED[name], save(tmp_path, name, state))
    expected = PUBLISHED[name].build()
    expected.load_published_state(state)
    got = model.network.state_dict()
    assert all(torch.equal(got[key], value) for key, value in expected.state_dict().items())
    assert model.origin is not None and len(model.origin.files) == len(IMPORTABLE[name].weights.files)


def test_all_that_is_wrong_stands_in_one_error(tmp_path: Path) -> None:
    state = draw("bambnet")
    state["head.0.weight"] = torch.zeros(64, 3, 3, 3)
    state["extra"] = torch.zeros(1)
    del state["tail_hard.0.bias"], state["layer1.0.0.bias"]
    with pytest.raises(WeightsError) as caught:
        import_published(PUBLISHED["bambnet"], [save_torch(tmp_path / "a.pth", state, "state_dict")])
    message = str(caught.value)
    assert "2 missing: layer1.0.0.bias, tail_hard.0.bias; 1 unknown: extra" in message
    assert "1 of another shape: head.0.weight (64, 3, 3, 3) in place of (64, 6, 3, 3)" in message
    assert "give 200_models.pth from Google Drive" in message and "\n" not in message


def test_only_networks_with_public_weights_can_be_imported(tmp_path: Path) -> None:
    assert set(AUTHORS) <= set(IMPORTABLE) and "nafnet" not in IMPORTABLE
    with pytest.raises(WeightsError, match=r"expected the files of NAFNet, width 32 \(none\), got 1"):
        import_published(PUBLISHED["nafnet"], [tmp_path])
