"""Provokes faults in real commands: kills, full disks, interrupts; and checks the files that they leave.

A command runs in a process that is forked from a server which has imported the libraries already, so that a moment of a
run is a moment of its work and not of its imports. A kill comes at a random time, or at the n-th file operation in the
output folder, which reaches every gap between two steps of writing.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PRELOAD = ("numpy", "cv2", "onnxruntime", "tests.faults.harness")
PRELOAD_TORCH = (
    "torch",
    "onnx",
    "ldp_export.bundling.onnx_graphs",
    "ldp_export.training",
    "ldp_export.simulation.scenes",
)
TEMPORARY_SUFFIXES = (".tmp", ".new")


@dataclass(frozen=True)
class Fault:
    """What happens to a command.

    Attributes:
        kind: "none", "kill" or "interrupt" (Ctrl-C).
        seconds: When, after the start; or
        operation: at which file operation in the output folder, counted from 0.
        largest_file: Bytes that a file may have, in place of a full disk.
        memory: Bytes of address space beyond what the process has when the command starts.
    """

    kind: str = "none"
    seconds: float | None = None
    operation: int | None = None
    largest_file: int | None = None
    memory: int | None = None


NO_FAULT = Fault()


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: Its exit code; -9 for a kill.
        stderr: Its output, with stdout.
        seconds: Its duration.
        operations: File operations in the output folder; None where it was killed.
    """

    code: int
    stderr: str
    seconds: float
    operations: int | None


@dataclass(frozen=True)
class Scenario:
    """A command, and the checks of its outputs.

    Attributes:
        name: For people.
        program: "ldp" or "ldp-export".
        arguments: The arguments, by the output folder.
        problems: The faults in the output folder; a partly written file is one, a missing file is not.
        complete: The faults after a run that succeeded, missing files among them.
        prepare: Writes the outputs of an earlier run.
    """

    name: str
    program: str
    arguments: Callable[[Path], list[str]]
    problems: Callable[[Path], list[str]]
    complete: Callable[[Path], list[str]]
    prepare: Callable[[Path], None] = field(default=lambda out: None)


def files_scenario(
    name: str, program: str, arguments: Callable[[Path], list[str]], reference: dict[str, bytes]
) -> Scenario:
    """A command that writes files, which are always the same.

    Args:
        name: For people.
        program: See ``Scenario``.
        arguments: See ``Scenario``.
        reference: Path in the output folder -> content of each file.
    """

    def wrong(out: Path, allowed: Callable[[bytes, bytes], bool]) -> list[str]:
        there = _contents(out)
        unknown = [f"{name} was not expected" for name in there.keys() - reference.keys()]
        return unknown + [f"{name} is not whole" for name, c in there.items() if not allowed(c, reference.get(name, c))]

    def prepare(out: Path) -> None:
        for file in reference:
            (out / file).parent.mkdir(exist_ok=True)
            (out / file).write_bytes(_OLD)

    return Scenario(
        name,
        program,
        arguments,
        problems=lambda out: wrong(out, lambda content, whole: content in (whole, _OLD)),
        complete=lambda out: [
            *wrong(out, lambda content, whole: content == whole),
            *(f"{name} is missing" for name in reference if not (out / name).is_file()),
        ],
        prepare=prepare,
    )


_OLD = b"old"


def _contents(out: Path) -> dict[str, bytes]:
    """The files of a folder by their path there, without temporary files and folders."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not any(is_temporary(part) for part in (path, *path.relative_to(out).parents))
    }


class Server:
    """Forks commands from a process with the libraries loaded."""

    def __init__(self, torch: bool = False) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOAD, *(PRELOAD_TORCH if torch else ())])

    def run(self, scenario: Scenario, out: Path, fault: Fault = NO_FAULT, limit: float = 600) -> Ending:
        """Runs a command.

        Args:
            scenario: The command.
            out: The output folder; made if missing.
            fault: What happens to it.
            limit: Seconds after which it counts as hung.

        Raises:
            TimeoutError: It hung.
        """
        out.mkdir(parents=True, exist_ok=True)
        reader, writer = self._context.Pipe(duplex=False)  # a file would fall under the limit of `largest_file`
        arguments = (scenario.program, scenario.arguments(out), str(out), writer, fault)
        process = self._context.Process(target=_command, args=arguments)
        start = time.monotonic()
        process.start()
        writer.close()
        received: list[bytes] = []
        listener = threading.Thread(target=_listen, args=(reader.fileno(), received), daemon=True)
        listener.start()
        if fault.seconds is not None:
            process.join(fault.seconds)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL if fault.kind == "kill" else signal.SIGINT)
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{scenario.name} hung for {limit:g} s")
        seconds = time.monotonic() - start
        listener.join()
        reader.close()
        output, _, operations = b"".join(received).decode(errors="replace").partition("\0")
        return Ending(process.exitcode, output, seconds, int(operations) if operations else None)


def _listen(handle: int, received: list[bytes]) -> None:
    while content := os.read(handle, 2**16):
        received.append(content)


def kill_and_recover(server: Server, scenario: Scenario, out: Path, fault: Fault, *, old: bool) -> dict[str, Any]:
    """Kills a command, checks its outputs, runs it again and checks again.

    Args:
        server: Runs it.
        scenario: The command.
        out: A new folder for it.
        fault: The kill.
        old: Outputs of an earlier run exist.

    Returns:
        ``killed``: it was still running; ``temporary``: temporary files that it left; ``problems``: a line for each
        fault.
    """
    out.mkdir(parents=True)
    if old:
        scenario.prepare(out)
    ending = server.run(scenario, out, fault)
    problems = [f"after the kill: {problem}" for problem in scenario.problems(out)]
    left = temporaries(out)
    if old and ending.code == -signal.SIGKILL and not left and not any(out.iterdir()):
        problems.append("after the kill: what was there before is gone")
    again = server.run(scenario, out)
    if again.code != 0:
        problems.append(f"the next run ended with {again.code}: {last_line(again.stderr)}")
    problems += [f"after the next run: {problem}" for problem in scenario.complete(out)]
    problems += [f"after the next run: {path.name} was left" for path in temporaries(out)]
    return {"killed": ending.code == -signal.SIGKILL, "code": ending.code, "temporary": len(left), "problems": problems}


def full_disk(server: Server, scenario: Scenario, out: Path, size: int, *, old: bool) -> dict[str, Any]:
    """Runs a command on a disk that refuses files over ``size`` bytes; see ``kill_and_recover``."""
    out.mkdir(parents=True)
    if old:
        scenario.prepare(out)
    ending = server.run(scenario, out, Fault(largest_file=size))
    problems = list(scenario.problems(out))
    if ending.code == 0:
        problems += scenario.complete(out)
    else:
        problems += error_problems(ending)
    problems += [f"{path.name} was left" for path in temporaries(out)]
    return {"failed": ending.code != 0, "code": ending.code, "problems": problems}


def interrupt(server: Server, scenario: Scenario, out: Path, operation: int) -> dict[str, Any]:
    """Sends Ctrl-C at a file operation; see ``kill_and_recover``."""
    ending = server.run(scenario, out, Fault("interrupt", operation=operation))
    problems = list(scenario.problems(out)) + [f"{path.name} was left" for path in temporaries(out)]
    if ending.code != 130:
        problems.append(f"expected exit code 130, got {ending.code}: {last_line(ending.stderr)}")
    if "Traceback" in ending.stderr:
        problems.append("a traceback was printed")
    return {"code": ending.code, "problems": problems}


def error_problems(ending: Ending) -> list[str]:
    """Checks that a command failed properly: one line, exit code 2, no traceback; the faults."""
    problems = []
    if ending.code != 2:
        problems.append(f"expected exit code 2, got {ending.code}: {last_line(ending.stderr)}")
    if "Traceback" in ending.stderr:
        problems.append("a traceback was printed")
    if ": error: " not in last_line(ending.stderr):
        problems.append(f"expected a line with an error, got {last_line(ending.stderr)!r}")
    return problems


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of ours."""
    return path.name.startswith(".") and path.suffix in TEMPORARY_SUFFIXES


def temporaries(out: Path) -> list[Path]:
    """Temporary files and folders in an output folder, at any depth, and beside the folders in it."""
    found = [path for path in out.rglob(".*") if is_temporary(path)]
    return [path for path in found if not any(is_temporary(parent) for parent in path.parents)]


def last_line(text: str) -> str:
    """The last non-empty line."""
    return next((line for line in reversed(text.replace("\r", "\n").splitlines()) if line.strip()), "")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noise_pair(folder: Path, height: int = 40, width: int = 56) -> tuple[Path, Path]:
    """Writes two views that hardly compress, so that their files are as large as they can be."""
    from ldp_runtime.images.photo import write_pixels

    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name, shift in (("left", 0), ("right", 1)):
        write_pixels(folder / f"{name}.png", np.roll(view, shift, axis=1))
    return folder / "left.png", folder / "right.png"


def _command(program: str, arguments: list[str], out: str, output: Connection, fault: Fault) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
    count = _watch(out, fault)
    if fault.largest_file is not None:  # Python ignores SIGXFSZ: a write beyond it fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest_file, resource.RLIM_INFINITY))
    if fault.memory is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        size = pages * resource.getpagesize() + fault.memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    if program == "ldp":
        from ldp_runtime.cli import main
    else:
        from ldp_export.cli import main
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.write(output.fileno(), f"\0{count[0]}".encode())
    os._exit(code)  # the exit handlers of other libraries are not tested


_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def _watch(out: str, fault: Fault) -> list[int]:
    """Counts file operations in the output folder, and does what is asked for at one of them."""
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not arguments or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if not os.fspath(arguments[0]).startswith(out + os.sep):
            return
        at, count[0] = count[0], count[0] + 1
        if fault.operation == at:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGINT)

    sys.addaudithook(hook)
    return count


def runtime_scenarios(work: Path, bundle: Path) -> list[Scenario]:
    """``ldp deblur`` with all its outputs, and ``ldp blur-map``.

    Args:
        work: A folder for the views.
        bundle: A bundle's folder.
    """
    left, right = noise_pair(work)
    common = ["--bundle", str(bundle), "--backend", "onnxruntime", "--precision", "fp32", "--threads", "1", "-q"]

    def deblur(out: Path) -> list[str]:
        extra = ["--blur-map", str(out / "blur.npy"), "--compare", str(out / "compare.jpg")]
        return ["deblur", str(left), str(right), "-o", str(out / "sharp.png"), *extra, *common]

    def blur_map(out: Path) -> list[str]:
        return ["blur-map", str(left), str(right), "-o", str(out / "blur.tif"), *common]

    return [_reference(work, "ldp deblur", "ldp", deblur), _reference(work, "ldp blur-map", "ldp", blur_map)]


def data_scenarios(work: Path) -> list[Scenario]:
    """``ldp-export simulate`` and ``data render``; ``work`` is a folder for their inputs."""
    from ldp_runtime.images.photo import write_pixels

    rng = np.random.default_rng(1)
    photos = work / "photos"
    photos.mkdir()
    coarse = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    write_pixels(photos / "photo.png", np.kron(coarse, np.ones((8, 8, 1), np.uint8)))
    left, _ = noise_pair(work)
    np.save(work / "disparity.npy", np.tile(np.linspace(1, 9, 56, dtype=np.float32), (40, 1)))

    def simulate(out: Path) -> list[str]:
        return [
            "simulate",
            str(left),
            "-o",
            str(out / "pair"),
            "--disparity",
            str(work / "disparity.npy"),
            "--max-coc",
            "3",
        ]

    def render(out: Path) -> list[str]:
        return ["data", "render", str(photos), "-o", str(out / "scenes"), "--scenes", "2", "--seed", "1"]

    return [
        _reference(work, "ldp-export simulate", "ldp-export", simulate),
        _reference(work, "ldp-export data render", "ldp-export", render),
    ]


def _reference(work: Path, name: str, program: str, arguments: Callable[[Path], list[str]]) -> Scenario:
    """A scenario whose right outputs come from a run in this process."""
    import importlib

    out = work / f"{name.replace(' ', '-')}.reference"
    out.mkdir()
    package = "ldp_runtime" if program == "ldp" else "ldp_export"
    with contextlib.redirect_stdout(io.StringIO()):
        code = importlib.import_module(f"{package}.cli").main(arguments(out))
    assert code == 0, name
    return files_scenario(name, program, arguments, _contents(out))


def export_scenario(checkpoint: Path) -> Scenario:
    """``ldp-export onnx`` into a folder that may hold a bundle and notes already."""
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.bundle.manifest import MANIFEST_FILE
    from ldp_runtime.errors import LDPError

    notes = "my notes"

    def problems(out: Path) -> list[str]:
        folder = out / "bundle"
        found = []
        if (folder / MANIFEST_FILE).is_file():
            try:
                Bundle.load(folder)
            except LDPError as error:
                found.append(str(error))
        elif folder.exists() and not (out / ".bundle.new" / MANIFEST_FILE).is_file():
            parts = [path.name for path in folder.iterdir() if path.suffix != ".md"]
            found += [f"{part} of a bundle is there without the rest" for part in parts]
        if (out / "old").exists() and (folder / "README.md").read_text(encoding="utf-8") != notes:
            found.append("the notes are gone")
        return found

    def complete(out: Path) -> list[str]:
        return problems(out) + ([] if (out / "bundle" / MANIFEST_FILE).is_file() else ["there is no bundle"])

    def prepare(out: Path) -> None:
        from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

        make_tiny_bundle(out, "bundle")
        (out / "bundle" / "README.md").write_text(notes)
        (out / "old").touch()

    return Scenario(
        "ldp-export onnx",
        "ldp-export",
        lambda out: ["onnx", str(checkpoint), "-o", str(out / "bundle")],
        problems,
        complete,
        prepare,
    )


def training_scenario(work: Path, checkpoint: Path) -> Scenario:
    """``ldp-export train``: a few steps that save their state after each."""
    import yaml

    rng = np.random.default_rng(0)
    data = work / "scenes"
    data.mkdir()
    for shard in range(3):  # the first two are held out
        target = np.kron(rng.integers(0, 256, (3, 12, 12, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
        views = {"left": np.roll(target, -1, 2), "right": np.roll(target, 1, 2), "target": target}
        arrays: dict[str, Any] = {**views, **_maps()}
        np.savez(data / f"scenes-{shard:04d}.npz", **arrays)
    config = {
        "name": "tiny",
        "init": str(checkpoint),
        "data": [{"dataset": "simulated", "folder": str(data)}],
        "stages": [{"steps": 4, "lr": 1e-3}],
        "crop": 32,
        "batch": 2,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "workers": 0,
        "log_every": 1,
        "save_every": 1,
    }
    file = work / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    weights: list[str] = []

    def problems(out: Path) -> list[str]:
        from ldp_export.checkpoint import NETWORK_FILE, Checkpoint

        found = []
        folder = out / "run" / "checkpoint"
        if (folder / NETWORK_FILE).is_file():
            try:
                Checkpoint.open(folder).network()
            except Exception as error:
                found.append(f"the checkpoint does not load: {error}")
        state = out / "run" / "train.state.pt"
        if state.is_file():
            import torch

            try:
                torch.load(state, weights_only=True)
            except Exception as error:
                found.append(f"the state does not load: {error}")
        return found

    def complete(out: Path) -> list[str]:
        path = out / "run" / "checkpoint" / "deblur.safetensors"
        found = problems(out) + ([] if path.is_file() else ["there is no checkpoint"])
        if path.is_file():
            weights.append(digest(path))
            if weights[-1] != weights[0]:
                found.append("the weights are not those of a run that was never stopped")
        steps = [
            json.loads(line)["step"]
            for line in (out / "run" / "train.log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        if steps != [1, 2, 3, 4]:
            found.append(f"expected a line for each step in the log, got {steps}")
        return found

    return Scenario(
        "ldp-export train", "ldp-export", lambda out: ["train", str(file), "-o", str(out / "run")], problems, complete
    )


def _maps() -> dict[str, Any]:
    return {name: np.ones((3, 48, 48), np.float16) for name in ("coc", "disparity")}


def fresh(folder: Path) -> Path:
    """The same path, with nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
