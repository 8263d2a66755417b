import argparse
import subprocess
import sys

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import ROOT


def test_the_list_imports_no_benchmark() -> None:
    code = (
        "import sys; from benchmarks.__main__ import main; assert main(['--help']) == 0; "
        "assert not {'benchmarks.scaling', 'numpy', 'torch', 'onnx'} & {*sys.modules}"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    for name, (_, purpose) in BENCHMARKS.items():
        assert name in shown
        assert purpose.split()[0] in shown
    assert "examples:" in shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m benchmarks {name}" in shown
    assert f"  python -m benchmarks {name}" in shown.partition("examples:")[2]


@pytest.mark.parametrize("arguments", [["nonsense"], ["latency", "--nonsense"], []])
def test_wrong_arguments_are_the_users_error(arguments: list[str]) -> None:
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("missing", "code", "words"),
    [
        ("torch.nn", 2, "benchmarks: error: expected the package torch for scaling, got none; in the repository run"),
        ("ldp_export.gone", 1, "this is a bug"),
    ],
)
def test_a_missing_package_of_others_is_named_with_its_extras(
    missing: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("benchmarks.scaling.run", run)
    assert main(["scaling"]) == code
    error = capsys.readouterr().err
    assert words in error
    assert (error.count("\n") == 1) == (code == 2)
