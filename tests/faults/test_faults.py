"""Kills, full disks and Ctrl-C in real commands; the benchmark reliability has more of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Fault, Server, error_problems, full_disk, interrupt, kill_and_recover
from tests.faults.scenarios import Scenario, data_scenarios, export_scenario, runtime_scenarios
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    work = tmp_path_factory.mktemp("faults")
    made = [*runtime_scenarios(work, make_tiny_bundle(work)), *data_scenarios(work)]
    return {scenario.name: scenario for scenario in made}


def test_a_command_killed_between_two_files_leaves_each_whole(
    server: Server, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenario = scenarios["ldp deblur"]
    operations = server.run(scenario, tmp_path / "clean").operations
    assert operations == 12  # three outputs: each tried, removed again, written and put in place
    result = kill_and_recover(server, scenario, tmp_path / "a", Fault("kill", operation=operations - 2), old=True)
    assert result == {"killed": True, "code": -signal.SIGKILL, "temporary": 2, "problems": []}


def test_a_pair_appears_whole_or_its_publication_is_ended_by_the_next_run(
    server: Server, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenario = scenarios["ldp-export simulate"]
    out = tmp_path / "out"
    out.mkdir()
    scenario.prepare(out)
    last = server.run(scenario, out).operations
    assert last is not None
    assert not scenario.complete(out)
    result = kill_and_recover(server, scenario, tmp_path / "a", Fault("kill", operation=last - 4), old=True)
    assert (result["killed"], result["problems"]) == (True, [])
    assert result["temporary"] == 1  # .pair.new, which holds the rest


@pytest.mark.parametrize("size", [0, 1000, 4000])
def test_a_full_disk_is_one_line(server: Server, scenarios: dict[str, Scenario], tmp_path: Path, size: int) -> None:
    result = full_disk(server, scenarios["ldp deblur"], tmp_path / "a", size, old=True)
    assert result == {"failed": True, "code": 2, "problems": []}


def test_ctrl_c_while_files_are_written(server: Server, scenarios: dict[str, Scenario], tmp_path: Path) -> None:
    assert interrupt(server, scenarios["ldp deblur"], tmp_path / "a", 7) == {"code": 130, "problems": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ldp deblur", "ldp blur-map", "ldp-export simulate", "ldp-export data render"])
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_every_file_operation(
    server: Server, scenarios: dict[str, Scenario], tmp_path: Path, name: str, old: bool
) -> None:
    scenario = scenarios[name]
    operations = server.run(scenario, tmp_path / "clean").operations
    assert operations
    for operation in range(operations):
        fault = Fault("kill", operation=operation)
        result = kill_and_recover(server, scenario, tmp_path / f"{operation}", fault, old=old)
        assert result["problems"] == [], operation


@pytest.mark.slow
def test_an_export_killed_at_every_step_of_its_publication(tmp_path: Path) -> None:
    from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint

    server = Server(torch=True)
    scenario = export_scenario(make_tiny_checkpoint(tmp_path / "checkpoint"))
    (tmp_path / "clean").mkdir()
    scenario.prepare(tmp_path / "clean")
    operations = server.run(scenario, tmp_path / "clean").operations
    assert operations
    for operation in range(operations - 10, operations):
        fault = Fault("kill", operation=operation)
        result = kill_and_recover(server, scenario, tmp_path / f"{operation}", fault, old=True)
        assert result["problems"] == [], operation


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_and_one_that_is_read_only(
    server: Server, scenarios: dict[str, Scenario], small_disk: Path
) -> None:
    scenario = scenarios["ldp deblur"]
    out = small_disk / "out"
    out.mkdir()
    (small_disk / "filler").write_bytes(b"0" * 60_000)
    ending = server.run(scenario, out)
    assert error_problems(ending) == []
    assert "No space left on device; free some space or choose another folder" in ending.stderr
    assert list(out.iterdir()) == []
    (small_disk / "filler").unlink()
    assert server.run(scenario, out).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ending = server.run(scenario, out)
    assert error_problems(ending) == []
    assert ending.stderr.endswith("Read-only file system; choose another folder\n")
    assert scenario.complete(out) == []


def test_a_report_that_does_not_fit_on_the_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ldp_runtime", "info"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == (
        "ldp: error: the output cannot be written: No space left on device; free some space or choose another folder\n"
    )
    assert done.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_no_stdout_at_all() -> None:
    done = subprocess.run(
        [f"exec {sys.executable} -m ldp_runtime info >&-"], shell=True, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
