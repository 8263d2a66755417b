"""The data file of peak rates, and the devices made from it."""

import json

import pytest

from benchmarks.harness.machine import BF16_FEATURES, describe
from benchmarks.roofline.hardware import FILE, Device, figures, gpus, measure_cpu, sources
from benchmarks.roofline.tables import unverified

DATA = json.loads(FILE.read_text(encoding="utf-8"))
WANTED = {"RTX 3060", "RTX 3090", "RTX 4090", "RTX 5090", "A100 SXM 80GB", "H100 SXM"}


def test_every_figure_has_a_known_source_and_every_source_is_used() -> None:
    assert set(DATA["devices"]) == WANTED
    used = {source for entries in DATA["devices"].values() for _, _, source in entries.values()}
    assert used == set(DATA["sources"])
    quantities = {frozenset(entries) for entries in DATA["devices"].values()}
    assert len(quantities) == 1
    for key, source in DATA["sources"].items():
        assert source["status"] in {"quoted", "derived", "unverified"}, key
        assert all(len(source[field]) > 5 for field in ("document", "where", "check")), key


def test_the_sources_are_listed_figure_by_figure() -> None:
    rows = sources()
    listed = {(row["device"], figure) for row in rows for figure in row["figures"].split(", ")}
    assert listed == {(name, quantity) for name, entries in DATA["devices"].items() for quantity in entries}
    assert len(listed) == sum(len(row["figures"].split(", ")) for row in rows), "no figure has two sources"
    assert [(row["device"], row["figures"]) for row in rows if row["status"] == "unverified"] == [("RTX 5090", "l2")]
    assert unverified(rows) == "Unverified: l2 of the RTX 5090."
    assert "checked" in unverified([row for row in rows if row["status"] != "unverified"])


@pytest.mark.parametrize(
    ("name", "cores", "ghz"),
    [
        ("RTX 3060", 3584, 1.777),
        ("RTX 3090", 10496, 1.695),
        ("RTX 4090", 16384, 2.52),
        ("RTX 5090", 21760, 2.407),
        ("A100 SXM 80GB", 6912, 1.41),
        ("H100 SXM", 16896, 1.98),
    ],
)
def test_fp32_follows_from_cores_and_boost_clock(name: str, cores: int, ghz: float) -> None:
    assert figures()[name]["fp32"] == pytest.approx(cores * 2 * ghz * 1e9, rel=4e-3)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_figures_of_a_card_agree_with_each_other(name: str) -> None:
    card = figures()[name]
    for quantity in ("fp16_tensor", "bf16_tensor", "int8_tensor"):
        assert card[f"{quantity}_sparse"] == pytest.approx(2 * card[quantity], rel=3e-3)
    assert card["int8_tensor"] == pytest.approx(2 * card["fp16_tensor"], rel=3e-3)
    assert card["bf16_tensor"] == pytest.approx(card["fp16_tensor_fp32_accumulate"], rel=3e-3)
    halved = card["fp16_tensor"] / card["fp16_tensor_fp32_accumulate"]
    assert halved == pytest.approx(2 if name.startswith("RTX") else 1, rel=3e-3)
    assert 1e6 < card["l2"] < 2e8 < card["bandwidth"] < 1e13


def test_the_3060_follows_from_its_multiprocessors() -> None:
    card, clock = figures()["RTX 3060"], 1.777e9
    assert card["fp16_tensor"] == pytest.approx(28 * 512 * 2 * clock, rel=3e-3)
    assert card["fp32"] == pytest.approx(28 * 128 * 2 * clock, rel=5e-3)


def test_a_floor_is_the_longest_of_the_three() -> None:
    device = Device("toy", "fp16", matrix=100.0, vector=10.0, bandwidth=1.0, cache=0, link=1.0, measured=False)
    assert device.seconds(200, 10, 1) == 2
    assert device.seconds(100, 30, 1) == 3
    assert device.seconds(100, 10, 4) == 4


def test_accumulating_in_fp32_is_never_faster() -> None:
    for fast, wide in zip(gpus("fp16"), gpus("fp32"), strict=True):
        assert fast.name == wide.name and fast.matrix >= wide.matrix and not fast.measured


@pytest.mark.slow
def test_the_cpu_is_measured() -> None:
    devices = measure_cpu()
    has_bf16 = bool(BF16_FEATURES & set(describe()["cpu"]["features"]))
    assert [device.precision for device in devices] == ["fp32", "bf16"][: 1 + has_bf16]
    assert all(device.measured and device.matrix > 1e8 and device.bandwidth > 1e8 for device in devices)
