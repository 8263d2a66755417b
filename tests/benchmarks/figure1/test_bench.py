import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.figure1 import bench
from benchmarks.figure1.bench import SHAPES, Bench, choose_backend
from benchmarks.figure1.contenders import CONTENDERS
from benchmarks.harness.results import BenchmarkError
from tests.benchmarks.figure1.blocks import block

NAMES = ["ebdb", "nafnet", "small"]
SIZE = (16, 24)


class Processes:
    """Stands in for the workers: remembers who ran, may fail or be interrupted."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: dict[str, str] = {}
        self.killed_at: int | None = None
        self.seconds = {name: 1.0 + i for i, name in enumerate(NAMES)}

    def __call__(self, module: str, spec: Any, folder: Path, most_seconds: float | None = None) -> dict[str, Any]:
        if len(self.ran) == self.killed_at:
            raise KeyboardInterrupt
        assert module == "benchmarks.figure1.worker"
        assert Path(spec.timing.left).is_file()
        self.ran.append(spec.name)
        if spec.name in self.failing:
            raise BenchmarkError(self.failing[spec.name])
        found: dict[str, Any] = json.loads(json.dumps(asdict(block(self.seconds.get(spec.name, 1.0)))))
        return found


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    stand_in = Processes()
    monkeypatch.setattr(bench, "run_spec", stand_in)
    yield stand_in


def made(**changes: Any) -> Bench:
    return Bench({name: CONTENDERS[name] for name in NAMES}, "torch", "fp32", **changes)


def test_backends_by_name() -> None:
    assert choose_backend("torch") == ("torch", "fp32")
    assert choose_backend("onnxruntime:fp32") == ("onnxruntime", "fp32")
    assert choose_backend("auto:fp32")[0] in ("openvino", "onnxruntime")
    assert choose_backend("auto", bf16=False)[1] == "fp32"
    with pytest.raises(BenchmarkError, match=r"expected a backend, one of torch, auto, .* got 'cuda'"):
        choose_backend("cuda")
    with pytest.raises(BenchmarkError, match="expected a precision of torch"):
        choose_backend("torch:int8")


def test_every_round_has_each_method_once_in_an_order_of_its_own(processes: Processes) -> None:
    store = made().measure(SIZE, 4)
    rounds = [processes.ran[i : i + 3] for i in range(0, 12, 3)]
    assert len(processes.ran) == 12 and all(sorted(each) == sorted(NAMES) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    assert [len(store.blocks(name)) for name in NAMES] == [4, 4, 4]


def test_a_killed_run_goes_on(processes: Processes) -> None:
    processes.killed_at = 4
    with pytest.raises(KeyboardInterrupt):
        made().measure(SIZE, 2)
    assert len(processes.ran) == 4
    processes.killed_at = None
    store = made().measure(SIZE, 2)
    assert sorted(processes.ran) == sorted(2 * NAMES)  # six in all: none twice
    assert [len(store.blocks(name)) for name in NAMES] == [2, 2, 2]
    made().measure((16, 32), 1)
    assert len(processes.ran) == 9  # another size
    made(anew=True).measure(SIZE, 1)
    assert len(processes.ran) == 12


def test_a_method_that_fails_keeps_its_reason_and_is_not_tried_again(processes: Processes) -> None:
    processes.failing["nafnet"] = "expected 9.0 GiB of free memory"
    store = made().measure(SIZE, 3)
    assert processes.ran.count("nafnet") == 1
    assert store.error("nafnet") == "expected 9.0 GiB of free memory"
    assert len(store.blocks("ebdb")) == 3


@pytest.mark.parametrize(("seconds", "chosen"), [(1e9, SHAPES[0]), (1.0, SHAPES[-1]), (400.0, (320, 480))])
def test_the_largest_size_that_the_time_allows(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, seconds: float, chosen: tuple[int, int]
) -> None:
    monkeypatch.setattr(bench, "K3DN_SHARE", 10.0)
    processes.seconds["restormer"] = 10.0  # at 160x240; 4 and 12.25 times that above, of which all take thrice
    assert made().choose_size(1, seconds) == chosen
    assert processes.ran == ["restormer"]
    processes.failing["restormer"] = "it broke"
    with pytest.raises(BenchmarkError, match="restormer failed at 160x240 px: it broke; give --shape"):
        made(anew=True).choose_size(1, seconds)


def test_the_command_writes_table_figure_and_reasons(processes: Processes, tmp_path: Path) -> None:
    processes.failing["dpdnet"] = "it broke"
    options = ["--shape", "16x24", "--backend", "torch", "--rounds", "1", "--network", "nafnet", "dpdnet"]
    assert main(["figure1", *options, "-o", str(tmp_path / "out")]) == 0
    data = json.loads((tmp_path / "out" / "figure1.json").read_text(encoding="utf-8"))["data"]
    assert [(row["who"], row["error"]) for row in data["rows"]] == [
        *(("ldp-nano", None), ("nafnet", None), ("dpdnet", "it broke")),
    ]
    text = (tmp_path / "out" / "figure1.md").read_text(encoding="utf-8")
    assert "| NAFNet, width 32 | none | – | 26.21 | 2.00 |" in text
    assert "| DPDNet | the authors' | MIT | 25.13 | failed |" in text and "- DPDNet: it broke." in text
    assert (tmp_path / "out" / "figure1.svg").is_file() and (tmp_path / "out" / "figure1.png").is_file()


def test_where_nothing_can_be_measured(
    processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.failing = {"ldp-nano": "it broke", "nafnet": "too"}
    assert main(["figure1", "--shape", "16x24", "--backend", "torch", "--network", "nafnet", "-o", str(tmp_path)]) == 2
    assert "nothing could be measured: it broke" in capsys.readouterr().err
    assert not list(tmp_path.glob("figure1*"))


def test_graphs_are_exported_for_a_backend_alone(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []
    monkeypatch.setattr(bench, "export_network", lambda network, half: exported.append((network.name, half)) or "g")
    monkeypatch.setattr("benchmarks.harness.bundles.random_bundle", lambda name: exported.append(name) or "b")
    made().measure(SIZE, 1)
    assert exported == []
    Bench({name: CONTENDERS[name] for name in NAMES}, "onnxruntime", "fp16").measure(SIZE, 1)
    assert sorted(map(str, exported)) == ["('nafnet', True)", "small"]


def test_records_of_another_bundle_of_that_name_do_not_count(processes: Processes) -> None:
    mine = {"mine": replace(CONTENDERS["small"], name="mine", kind="bundle", bundle="here")}
    for content in ("1", "2", "2"):
        Bench(mine, "onnxruntime", "fp32", contents={"mine": content}).measure(SIZE, 1)
    assert processes.ran == ["mine", "mine"]
