from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from ldp_runtime.cli import main
from ldp_runtime.commands import bench


def test_help_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in bench.BENCHMARKS:
        assert name in shown


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_each_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: ldp bench {name}" in shown
    assert "examples:" in shown


def test_the_commands_help_imports_no_benchmark() -> None:
    code = "import sys; from ldp_runtime.cli import main; main(['--help']); assert 'benchmarks' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [["nonsense"], ["latency", "--nonsense"], []])
def test_wrong_arguments_are_the_users_error(arguments: list[str]) -> None:
    assert main(["bench", *arguments]) == 2


def test_without_the_repository_the_error_says_where_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name="benchmarks")

    monkeypatch.setattr(bench.importlib, "import_module", missing)
    with pytest.raises(bench.BenchError, match="clone the repository"):
        bench._load("latency")
    monkeypatch.undo()
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = importlib.import_module("benchmarks.latency.bench")

    def run(_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    monkeypatch.setattr(benchmark, "run", run)
    assert main(["bench", "latency"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ldp: error: ldp bench latency needs the package torch")
    assert error.count("\n") == 1


def test_a_missing_module_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = importlib.import_module("benchmarks.latency.bench")

    def run(_: object) -> None:
        raise ModuleNotFoundError("No module named 'ldp_export.gone'", name="ldp_export.gone")

    monkeypatch.setattr(benchmark, "run", run)
    assert main(["bench", "latency"]) == 1
    assert "this is a bug" in capsys.readouterr().err
