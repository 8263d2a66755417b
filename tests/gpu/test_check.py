"""``python -m tests.gpu`` without a GPU: over the host device, and what it says where there is none."""

import dataclasses
import json
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda import launches
from ldp_runtime.cuda.device import open_device
from ldp_runtime.errors import BackendError
from ldp_runtime.stages.blur_map import sigmoid
from tests.gpu import __main__ as check
from tests.gpu.mirror import Mirror, _writable
from tests.gpu.steps import STEPS, Setting, SkippedError
from tests.ldp_runtime.cuda.fenced import Fenced
from tests.ldp_runtime.cuda.host_build import address
from tests.ldp_runtime.cuda.host_device import HostDevice, HostStream
from tests.processes import python


def blended(device: HostDevice) -> np.ndarray:
    """A tile of 5 x 9 px of noise that was blended with weights of one, as the device did it."""
    tile = np.random.default_rng(0).random((3, 5, 9), np.float32)
    ones, out = np.ones(9, np.float32), Fenced(tile.shape, np.float32, 1)
    out.array[...] = 0
    mirror = Mirror(device)
    mirror(launches.blend(address(tile), (5, 9), address(ones), address(ones), out.address, (5, 9), (0, 0)))
    assert mirror.launches == 1
    assert "blend" in device.log
    np.testing.assert_array_equal(out.check(), tile)
    return out.array


def test_a_mirrored_launch_runs_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    blended(HostDevice())
    monkeypatch.setattr(HostStream, "launch", lambda self, launch: self.device.log.append("blend"))
    with pytest.raises(AssertionError, match="Arrays are not equal"):  # a device that does nothing is found out
        blended(HostDevice())


def test_a_device_that_writes_beyond_an_output_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = HostStream.launch

    def careless(self: HostStream, launch: Any) -> None:
        run(self, launch)
        self.zero(int(launch.arguments[5]) - 4, 4)  # just before the accumulator

    monkeypatch.setattr(HostStream, "launch", careless)
    with pytest.raises(AssertionError, match="written outside of the output"):
        blended(HostDevice())


def test_an_array_across_a_border_of_the_systems_map_is_mirrored_whole() -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 64 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK, 32 * page, 32 * page)  # NumPy's advice is another, and not in every kernel
    everything = np.frombuffer(memory, np.uint8)
    start = address(everything)
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"{start + 32 * page:x}-") for line in lines), "the system lists it as one"
    assert any(low <= start and start + everything.nbytes <= high for low, high in _writable())
    out = everything[30 * page : 34 * page].view(np.float32).reshape(4, -1)
    logits = np.full((1, 1), 2, np.float32)
    call = launches.blur_map(address(logits), (1, 1), out.shape[1], address(out), out.shape)
    Mirror(HostDevice())(call)
    np.testing.assert_allclose(out, sigmoid(np.float32(2)), atol=1e-6)


def test_arguments_of_other_types_are_refused() -> None:
    call = launches.blur_map(4096, (1, 1), 16, 4096, (4, 4))
    wrong = dataclasses.replace(call, arguments=(np.int32(0), *call.arguments[1:]))
    with pytest.raises(TypeError, match="of blur_map, got i"):
        Mirror(HostDevice())(wrong)


@pytest.mark.slow
def test_a_dry_run_passes_and_writes_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "out" / "check.json"
    code = "import sys; from tests.gpu.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "--dry-run", "-o", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_bytes())
    verdicts = {name: step["verdict"] for name, step in report["steps"].items()}
    on_the_host = ("kernels", "chain", "graphs", "bandwidth")
    assert verdicts == {name: "passed" if name in on_the_host else "skipped" for name in STEPS}
    assert report["device"] == {"name": "the test's host", "arch": "sm_0", "dry_run": True}
    assert report["steps"]["kernels"]["figures"]["launches"] > 400
    assert report["steps"]["chain"]["figures"]["least_psnr_db"] > 60
    assert "| kernels | passed |" in done.stdout
    assert "| prepare_u8_f16 | 96x160 |" in done.stdout


def test_without_a_gpu_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        open_device()
    except BackendError:
        pass
    else:
        pytest.skip("there is a GPU")
    assert check.main(["-o", str(tmp_path / "check.json")]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("gpu-check: error: CUDA needs ") and output.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_step_that_fails_stops_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(setting: Setting) -> dict[str, Any]:
        raise AssertionError("expected 1,\ngot 2")

    def is_missing(setting: Setting) -> dict[str, Any]:
        raise SkippedError("torch is not installed")

    def passes(setting: Setting) -> dict[str, Any]:
        return {"of": "the rest", "stages_ms": {"clip": 1.5}}

    monkeypatch.setattr("tests.gpu.steps.STEPS", {"a": fails, "b": is_missing, "c": passes})
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    assert check.main(["--dry-run", "-o", str(tmp_path / "check.json")]) == 1
    steps = json.loads((tmp_path / "check.json").read_bytes())["steps"]
    assert [step["verdict"] for step in steps.values()] == ["failed", "skipped", "passed"]
    assert steps["a"]["reason"] == "AssertionError: expected 1, got 2"
    output = capsys.readouterr()
    assert re.search(r"\| b \| skipped \| \d+\.\d \| torch is not installed \|", output.out)
    assert re.search(r"\| c \| passed \| \d+\.\d \| of the rest, stages_ms: clip 1.5 \|", output.out)
    assert "Traceback" in output.err
