"""Provokes faults in real commands: kills, full disks, interrupts; and checks the files that they leave.

A command runs in a process that is forked from a server which has imported the libraries already, so that a moment of a
run is a moment of its work and not of its imports. A kill comes at a random time, or at the n-th file operation in the
output folder, which reaches every gap between two steps of writing.
"""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.scenarios import Scenario, is_temporary

PRELOAD = ("numpy", "cv2", "onnxruntime", "tests.faults.harness")
PRELOAD_TORCH = (
    "torch",
    "onnx",
    "ldp_export.bundling.onnx_graphs",
    "ldp_export.training",
    "ldp_export.simulation.scenes",
)


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


def temporaries(out: Path) -> list[Path]:
    """Temporary files and folders in an output folder, at any depth, and beside the folders in it."""
    found = [path for path in out.rglob(".*") if is_temporary(path)]
    return [path for path in found if not any(is_temporary(parent) for parent in path.parents)]


def last_line(text: str) -> str:
    """The last non-empty line."""
    return next((line for line in reversed(text.replace("\r", "\n").splitlines()) if line.strip()), "")


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


def fresh(folder: Path) -> Path:
    """The same path, with nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
