import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.figure1.contenders import CONTENDERS, bundle_contender, choose
from ldp_export.evaluation import paper
from ldp_export.network.published import PUBLISHED
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


def cells(name: str, row: str, column: str) -> str:
    """A cell of one of the paper's tables, read apart from ``load_table``."""
    with (paper.FOLDER / name).open() as file:
        return next(line[column] for line in csv.DictReader(file) if row in line.values())


def test_every_method_of_table_1_is_there_with_its_average() -> None:
    with (paper.FOLDER / "table1.csv").open() as file:
        printed = {line["method"]: float(line["average_psnr"]) for line in csv.DictReader(file)}
    found = {
        c.quoted.source.removeprefix("LDP paper, Table 1, "): c.quoted.psnr for c in CONTENDERS.values() if c.quoted
    }
    assert {name: psnr for name, psnr in found.items() if not name.startswith("LDP paper")} == printed


@pytest.mark.parametrize(
    ("who", "table", "row", "column"),
    [
        ("ebdb", "table1.csv", "EBDB", "average_psnr"),
        ("k3dn", "table1.csv", "K3DN", "average_psnr"),
        ("small", "table1.csv", "Ours (Small)", "average_psnr"),
        ("large", "table1.csv", "Ours (Large)", "average_psnr"),
        ("nafnet", "table6.csv", "NAFNet", "psnr"),
    ],
)
def test_quotations_are_the_printed_ones(who: str, table: str, row: str, column: str) -> None:
    quoted = CONTENDERS[who].quoted
    assert quoted is not None
    assert quoted.psnr == float(cells(table, row, column))
    assert quoted.ssim == float(cells(table, row, column.replace("psnr", "ssim")))


def test_no_network_is_left_out() -> None:
    assert set(CONTENDERS) == {"ebdb", *PUBLISHED, "small", "large", "fast", "fast-large"}
    assert CONTENDERS["fast"].quoted is None
    assert CONTENDERS["k3dn"].weights == "a third party's"
    assert CONTENDERS["restormer"].weights == "the authors'" and CONTENDERS["restormer"].licence
    assert CONTENDERS["nafnet"].weights == "none" and CONTENDERS["nafnet"].licence is None


def test_a_bundle_stands_for_the_method_whose_weights_it_holds() -> None:
    nano = Bundle.load(NANO)
    contender = bundle_contender(nano)
    assert (contender.weights, contender.licence, contender.quoted) == ("ours", "Apache-2.0", None)
    manifest = SimpleNamespace(
        name="mine",
        network={"name": "restormer"},
        training={},
        licences={},
        origin=SimpleNamespace(licence="no selling"),
    )
    imported = cast(Any, SimpleNamespace(manifest=manifest, path=Path("mine")))
    found = choose(["restormer", "dpdnet"], [nano, imported])
    assert [each.name for each in found] == ["ldp-nano", "mine", "dpdnet"]
    assert found[1].quoted == CONTENDERS["restormer"].quoted
    assert found[1].licence == "no selling" and found[1].weights == "imported, the authors'"
