"""State dicts of torch: wrappers, prefixes, bounds. What else is refused is tested with the released checkpoint."""

import zipfile
from pathlib import Path

import pytest
import torch

from ldp_export.importing import state as module
from ldp_export.importing.state import WeightsError, check_state, file_hash, read_torch

STATE = {"a.weight": torch.rand(2), "b": torch.rand(3)}


@pytest.mark.parametrize("wrapper", ["", *module.WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "module.", "module.Network."])
def test_wrappers_and_prefixes_go(tmp_path: Path, wrapper: str, prefix: str) -> None:
    named = {prefix + name: tensor for name, tensor in STATE.items()}
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, tmp_path / "a.pth")
    state = read_torch(tmp_path / "a.pth", "give it")
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items()) and len(state) == 2


def test_a_name_twice_is_an_error(tmp_path: Path) -> None:
    torch.save({"module.b": STATE["b"], **STATE}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="expected one tensor of each name, got b twice; give it"):
        read_torch(tmp_path / "a.pth", "give it")


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100_000)
    path = tmp_path / "a.pth"
    path.write_bytes(bytes(100_001))
    with pytest.raises(WeightsError, match="expected at most 100000 bytes, got 100001"):
        file_hash(path, "give it")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    assert path.stat().st_size < 100_000
    file_hash(path, "give it")
    with pytest.raises(WeightsError, match="expected at most 100000 bytes unpacked"):
        read_torch(path, "give it")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged),
    ],
    ids=["sparse", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_tensor_without_its_numbers_in_a_row_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({**STATE, "b": tensor}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="expected plain tensors, got b as"):
        read_torch(tmp_path / "a.pth", "give it")


def test_numbers_beyond_fp32_are_not_finite() -> None:
    check_state("a.pth", {"b": torch.ones(3).to(torch.float8_e4m3fn)}, {"b": (3,)}, "a network", "give it")
    with pytest.raises(WeightsError, match="1 not of finite numbers: b"):
        check_state("a.pth", {"b": torch.full((3,), 1e300, dtype=torch.double)}, {"b": (3,)}, "a network", "give it")


def test_a_page_in_place_of_a_file_brings_no_advice_to_run_it(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"cannot read \(UnpicklingError: Weights only load failed\); give it"):
        read_torch(tmp_path / "a.pth", "give it")


def test_a_huge_shape_over_few_numbers_is_refused_by_its_shape() -> None:
    with pytest.raises(WeightsError, match="1 of another shape: b "):
        check_state("a.pth", {"b": torch.zeros(1).expand(1 << 40)}, {"b": (3,)}, "a network", "give it")
