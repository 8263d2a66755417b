import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ldp_runtime.batch.cluster import TRIES, ClusterError, Share, Worker, share_out
from ldp_runtime.batch.jobs import Settings, make_jobs
from ldp_runtime.batch.journal import JOURNAL_FILE, tries_file
from ldp_runtime.batch.pairs import find_pairs
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cli import main
from tests.ldp_runtime.batch.folders import command, hold, make_pairs, outputs, start, wait_for
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

MACHINE = {"CPU": 16.0}
GPU_MACHINE = {"CPU": 16.0, "GPU": 4.0}
PAIRS = 24


def settings(backend: str = "auto", threads: int | None = None) -> Settings:
    return Settings("bundle", backend, "auto", threads, "auto", "horizontal", False, "content")


@pytest.mark.parametrize(
    ("nodes", "backend", "workers", "expected"),
    [
        ([MACHINE, MACHINE], "auto", None, Share(2, 16, 0, None)),
        ([MACHINE, {"CPU": 4.0}], "auto", None, Share(2, 4, 0, None)),
        ([MACHINE], "auto", 4, Share(4, 4, 0, 4)),
        ([MACHINE, MACHINE], "openvino", 3, Share(3, 8, 0, 8)),
        ([GPU_MACHINE, GPU_MACHINE], "auto", None, Share(8, 4, 1, None)),
        ([GPU_MACHINE], "openvino", None, Share(1, 16, 0, None)),
        ([GPU_MACHINE], "cuda", 2, Share(2, 8, 1, None)),
        ([{"memory": 1.0}, MACHINE], "auto", None, Share(1, 16, 0, None)),
        ([{"CPU": 2.0}, GPU_MACHINE], "auto", None, Share(4, 4, 1, None)),
    ],
)
def test_share_out(nodes: list[dict[str, float]], backend: str, workers: int | None, expected: Share) -> None:
    assert share_out(nodes, settings(backend), workers=workers) == expected


def test_threads_as_asked() -> None:
    assert share_out([MACHINE], settings(threads=3), workers=2).threads == 3


@pytest.mark.parametrize(
    ("nodes", "workers", "words"),
    [([], None, "with CPUs"), ([MACHINE], 17, "at most 16 workers"), ([GPU_MACHINE], 5, "at most 4 workers")],
)
def test_too_little_to_share(nodes: list[dict[str, float]], workers: int | None, words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        share_out(nodes, settings(), workers=workers)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = make_pairs(tmp_path / "in", 1)
    assert main(command(source, tmp_path / "out", make_tiny_bundle(tmp_path), "--ray", "local")) == 2
    assert "pip install 'ldp[ray]'" in capsys.readouterr().err


def test_a_worker_gives_a_pair_up_that_others_died_over(tmp_path: Path) -> None:
    """Without Ray: what an actor does with the marks that those before it left."""
    bundle = Bundle.load(make_tiny_bundle(tmp_path))
    pairs = find_pairs(make_pairs(tmp_path / "in", 1), tmp_path / "out").pairs
    (job,) = make_jobs(pairs, tmp_path / "out", image_format=None, map_format=None)
    own = replace(settings("onnxruntime", 1), bundle=str(bundle.path), content=bundle.content)
    row = {"job": json.dumps({name: value and str(value) for name, value in vars(job).items()})}
    mark = tries_file(job)
    mark.parent.mkdir(parents=True)
    for tries in range(TRIES + 1):
        mark.write_bytes(b"." * tries)
        outcome = json.loads(Worker(own)(row)["outcome"])
        if tries < TRIES:
            assert outcome["record"]["name"] == "00/pair.png"
            assert set(outputs(tmp_path / "out")) == {"00/pair.png"}
        else:
            assert f"{TRIES} workers died over it" in outcome["error"]
    fault = json.loads(Worker(replace(own, content="another"))(row)["outcome"])
    assert "put the same bundle on every machine" in fault["error"]


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """Two workers on a local cluster; one is killed in the middle, and the outputs are those of a local run."""
    pytest.importorskip("ray", reason="needs the extra ray")
    bundle = make_tiny_bundle(tmp_path)
    source = make_pairs(tmp_path / "in", PAIRS, height=300, width=400)
    assert main(command(source, tmp_path / "local", bundle, "-q")) == 0

    out = tmp_path / "ray"
    arguments = command(source, out, bundle)
    go = hold(tmp_path, f"{PAIRS - 1}")
    process = start([*arguments, "--ray", "local", "--workers", "2", "--json"], path=tmp_path)
    wait_for(process, out, 1)
    os.kill(actors(process.pid)[0], signal.SIGKILL)
    go.touch()
    printed, err = process.communicate(timeout=540)
    assert process.returncode == 0, err
    assert json.loads(printed)["restored"] == PAIRS

    assert outputs(out) == outputs(tmp_path / "local")
    journal = out / JOURNAL_FILE
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    names = [line["done"]["name"] for line in lines if "done" in line]
    assert sorted(names) == sorted(outputs(out))  # each once

    # A local run continues a run on the cluster.
    assert main([*arguments, "-q"]) == 0
    assert journal.read_text(encoding="utf-8").count('{"done"') == PAIRS


@pytest.mark.slow
def test_a_pair_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    """A worker that reads the second pair ends at once, as if the system had killed it for its memory."""
    pytest.importorskip("ray", reason="needs the extra ray")
    (tmp_path / "sitecustomize.py").write_text(POISON)
    source = make_pairs(tmp_path / "in", 3)
    out = tmp_path / "out"
    arguments = command(source, out, make_tiny_bundle(tmp_path), "--ray", "local", "--workers", "1", "--json")
    process = start(arguments, path=tmp_path)
    printed, err = process.communicate(timeout=580)
    assert process.returncode == 1, err
    (failure,) = json.loads(printed)["failures"]
    assert failure["name"] == "01/pair.png"
    assert f"{TRIES} workers died over it" in failure["error"]
    assert set(outputs(out)) == {"00/pair.png", "02/pair.png"}


POISON = """
import os, sys

if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    from ldp_runtime.batch import work

    def read(job, settings, real=work.read):
        if job.name.startswith("01/"):
            os._exit(9)
        return real(job, settings)

    work.read = read
"""


def actors(driver: int) -> list[int]:
    """Processes of a local cluster that hold our model, by what Ray calls them."""
    session = os.getsid(driver)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if b"ray::" in name and b"Worker" in name and descends(int(entry.name), session):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def descends(process: int, session: int) -> bool:
    """Whether a process was started by one of a session."""
    while process > 1:
        if process == session:
            return True
        process = int((Path("/proc") / str(process) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return False
