"""Imported networks compute what their authors' code computes."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from ldp_export.importing.published import import_published
from ldp_export.importing.state import WeightsError
from ldp_export.network.published import PUBLISHED
from tests.ldp_export.importing.authors import AUTHORS, IMPORTABLE, Reading
from tests.ldp_export.importing.made_files import draw, narrow, save, save_torch

CASES = [*AUTHORS, "rdpd masked"]


@pytest.mark.parametrize("case", CASES)
def test_an_imported_network_computes_what_its_authors_code_computes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
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


@pytest.mark.parametrize("name", sorted(IMPORTABLE - set(AUTHORS)))
def test_files_of_the_others_load_whole(name: str, tmp_path: Path) -> None:
    """What these compute is tested beside them."""
    state = draw(name)
    model = import_published(PUBLISHED[name], save(tmp_path, name, state))
    expected = PUBLISHED[name].build()
    expected.load_published_state(state)
    got = model.network.state_dict()
    assert all(torch.equal(got[key], value) for key, value in expected.state_dict().items())
    assert model.origin is not None and len(model.origin.files) == len(PUBLISHED[name].weights.files)


def test_files_in_the_wrong_order_are_named(tmp_path: Path) -> None:
    estd, esti = save(tmp_path, "dddnet", draw("dddnet"))
    with pytest.raises(WeightsError) as caught:
        import_published(PUBLISHED["dddnet"], [esti, estd])
    message = str(caught.value)
    start = f"{esti}: expected Estd.pkl here, got the tensors of Esti.pkl; give Estd.pkl and Esti.pkl from "
    assert message.startswith(start)
    assert message.endswith(", in this order") and "\n" not in message
    with pytest.raises(WeightsError, match=re.escape(f"{estd}: expected Esti.pkl here, got the tensors of Estd.pkl")):
        import_published(PUBLISHED["dddnet"], [estd, estd])


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
    assert set(AUTHORS) <= IMPORTABLE and "nafnet" not in IMPORTABLE
    with pytest.raises(WeightsError, match=r"expected the files of NAFNet, width 32 \(none\), got 1"):
        import_published(PUBLISHED["nafnet"], [tmp_path])
