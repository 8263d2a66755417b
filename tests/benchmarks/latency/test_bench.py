from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, BundleId, Report
from benchmarks.latency import bench as latency
from benchmarks.latency import worker as latency_worker
from benchmarks.latency.bench import Contender, find_contenders, measure, parse_shape, to_markdown, verdicts
from benchmarks.latency.worker import Block, Spec
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.errors import BackendError
from ldp_runtime.images.photo import read_photo
from ldp_runtime.registry import BACKENDS
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

SHAPE = (64, 96)
ORT, TORCH, LAST = (
    Contender("onnxruntime", "fp32"),
    Contender("torch", "fp32"),
    Contender("torch-channels-last", "fp32"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_tiny_bundle(tmp_path_factory.mktemp("bundles")))


def block(seconds: list[float], *, events: bool = False, host_bytes: int = 2**20) -> Block:
    """What a worker would have measured: half of each run is deblurring, an eighth each copy."""
    parts = {"prepare": 1 / 8, "clip": 1 / 8, "deblur": 1 / 2, "finish": 0.0}
    parts |= {"upload": 1 / 8, "download": 1 / 8} if events else {"blur_logits": 1 / 4}
    return Block(
        seconds,
        {stage: [part * value for value in seconds] for stage, part in parts.items()},
        {"read": 0.5, "write": 0.25},
        {"process": 1.0, "load": 2.0, "first": 4.0},
        host_bytes,
        2**30 if events else None,
        "a device",
        gpu=events,
        events=events,
    )


FakeBlocks = Callable[[Callable[[Contender, int], Block | str]], list[str]]


@pytest.fixture
def fake_blocks(monkeypatch: pytest.MonkeyPatch) -> FakeBlocks:
    """Puts a synthetic clock in the place of worker processes; gives the order in which blocks were asked for."""

    def install(clock: Callable[[Contender, int], Block | str]) -> list[str]:
        asked: list[str] = []

        def add(track: Any, *_: object) -> None:
            asked.append(track.contender.name)
            got = clock(track.contender, len(track.blocks))
            if isinstance(got, str):
                track.error = got
            else:
                track.blocks.append(got)

        monkeypatch.setattr(latency, "_add_block", add)
        monkeypatch.setattr(latency, "_write_pair", lambda *_: None)
        return asked

    return install


def report_of(data: dict[str, Any], gpus: tuple[str, ...] = ()) -> Report:
    machine = {"summary": "here", "cpu": {"name": "Some CPU"}, "gpus": [{"name": name} for name in gpus]}
    return Report("latency", machine, "2026-01-02T03:04:05Z", Commit(None, False), BundleId("b", "0" * 64, True), data)


# --- what is timed ------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    assert parse_shape("1120x1680") == (1120, 1680)
    for text in ("1120", "0x5", "axb", "1x2x3", "-1x2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected HEIGHTxWIDTH"):
            parse_shape(text)


def test_all_is_every_backend_here_in_each_of_its_precisions(bundle: Bundle) -> None:
    contenders, left_out = find_contenders(["all"], bundle, None)
    wanted = [Contender(name, p) for name in ("openvino", "onnxruntime") for p in BACKENDS[name].precisions]
    wanted.remove(Contender("openvino", "int8"))  # the bundle has no INT8 graphs
    wanted.remove(Contender("onnxruntime", "int8"))
    assert [c for c in contenders if c.backend in ("openvino", "onnxruntime")] == wanted
    assert {c.backend for c in contenders} | set(left_out) == {*BACKENDS, *latency.TORCH} - {latency.ANY_TENSORRT}
    assert "models/checkpoints has none" in left_out["torch"]


def test_backends_by_name(bundle: Bundle) -> None:
    contenders, left_out = find_contenders(["onnxruntime:fp16", "openvino:fp32", "onnxruntime"], bundle, None)
    assert [c.name for c in contenders] == ["onnxruntime fp16", "openvino fp32", "onnxruntime fp32"]
    assert left_out == {}
    contenders, _ = find_contenders(["openvino:auto", "onnxruntime:auto"], bundle, None)
    chosen = [f"{name} {BACKENDS[name].resolve('auto')}" for name in ("openvino", "onnxruntime")]
    assert [c.name for c in contenders] == chosen


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nonsense", "expected a backend, one of all, openvino"),
        ("onnxruntime:bf16", "one of fp32, fp16, got 'bf16'"),
        ("torch", "needs the weights of tiny as a checkpoint"),
    ],
)
def test_a_backend_that_cannot_be_timed_is_an_error_when_asked_for(bundle: Bundle, asked: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        find_contenders([asked], bundle, None)


# --- rounds -------------------------------------------------------------------------------------------------------


def test_a_steady_clock_needs_the_fewest_rounds(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    asked = fake_blocks(lambda contender, _: block([4.0 if contender == TORCH else 2.0] * 3))
    data = measure(bundle, [ORT, TORCH, LAST], [SHAPE], seconds=1e6)
    assert data["settings"]["rounds"] == latency.MIN_ROUNDS
    names = {contender.name for contender in (ORT, TORCH, LAST)}
    rounds = [asked[i : i + 3] for i in range(0, len(asked), 3)]
    assert all(set(each) == names for each in rounds)
    ort = data["series"][0]["configurations"][0]
    assert ort["seconds"]["median"] == 2.0
    assert ort["seconds"]["known"]
    assert ort["seconds"]["runs"] == 3 * latency.MIN_ROUNDS
    assert ort["ratios"]["torch fp32"]["value"] == 0.5
    assert ort["ratios"]["torch-channels-last fp32"]["value"] == 1.0
    assert ort["stages"] == {
        **{"read": 0.5, "prepare": 0.25, "clip": 0.25, "deblur": 1.0, "finish": 0.0, "blur_logits": 0.5},
        "write": 0.25,
    }
    assert ort["start_up"] == {"process": 1.0, "load": 2.0, "first": 4.0, "total": 7.0}
    assert ort["device"] is ort["device_and_copies"] is ort["device_bytes"] is None
    assert data["series"][0]["configurations"][1]["ratios"]["torch fp32"] == {"value": 1.0, "low": None, "high": None}


def test_an_unsteady_clock_goes_on_until_the_median_is_known(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    noise = np.random.default_rng(0)
    fake_blocks(lambda *_: block((1 + 0.2 * noise.random(10)).tolist()))
    data = measure(bundle, [ORT], [SHAPE], seconds=1e6)
    assert data["settings"]["rounds"] > latency.MIN_ROUNDS
    assert data["series"][0]["configurations"][0]["seconds"]["known"]


def test_no_round_starts_that_would_end_too_late(
    bundle: Bundle, fake_blocks: FakeBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(latency.time, "monotonic", lambda: now[0])

    def clock(_: Contender, rounds: int) -> Block:
        now[0] += 10
        return block([1.0 + rounds])

    fake_blocks(clock)
    assert measure(bundle, [ORT], [SHAPE], seconds=59)["settings"]["rounds"] == 5
    now[0] = 0.0
    assert measure(bundle, [ORT], [SHAPE], seconds=1)["settings"]["rounds"] == 1
    now[0] = 0.0
    data = measure(bundle, [ORT], [SHAPE], seconds=1, repeats=4)
    assert data["settings"] | {"rounds": 4, "time_limit": None, "seconds": 40.0} == data["settings"]


def test_one_that_fails_leaves_the_others_alone(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    asked = fake_blocks(lambda contender, done: "it broke" if contender == TORCH and done == 1 else block([1.0]))
    data = measure(bundle, [ORT, TORCH], [SHAPE, (32, 32)], repeats=3)
    assert [c["error"] for s in data["series"] for c in s["configurations"]] == [None, "it broke"] * 2
    assert (asked.count(ORT.name), asked.count(TORCH.name)) == (6, 4)
    assert "torch fp32" not in data["series"][0]["configurations"][0]["ratios"]
    assert "torch fp32 failed: it broke" in to_markdown(report_of({**data, "left_out": {}}))


def test_nothing_to_time_is_an_error(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    fake_blocks(lambda *_: "no such device")
    with pytest.raises(BenchmarkError, match="onnxruntime fp32: no such device"):
        measure(bundle, [ORT], [SHAPE], repeats=1)


def test_images_are_compared_with_torchs(
    bundle: Bundle, fake_blocks: FakeBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    images = {TORCH.name: image, ORT.name: image ^ 1, LAST.name: image}

    def add(track: Any, bundle: Bundle, folder: Path, *_: object) -> None:
        track.blocks.append(block([1.0]))
        np.save(latency._restored(folder, track.contender.name, track.shape), images[track.contender.name])

    monkeypatch.setattr(latency, "_add_block", add)
    found = measure(bundle, [ORT, TORCH, LAST], [SHAPE], repeats=1)["series"][0]["configurations"]
    assert found[0]["psnr_to_torch_db"] == pytest.approx(20 * math.log10(255))
    assert [c["equal_to_torch"] for c in found] == [False, True, True]
    images[ORT.name] = 255 - image
    with pytest.raises(BenchmarkError, match="not what the bundle was exported from"):
        measure(bundle, [ORT, TORCH], [SHAPE], repeats=1)


# --- on a GPU -----------------------------------------------------------------------------------------------------


def gpu_data(bundle: Bundle, fake_blocks: FakeBlocks, network: str) -> dict[str, Any]:
    fake_blocks(lambda contender, _: block([0.04] * 3, events=contender.backend == "tensorrt-rtx"))
    data = measure(bundle, [Contender("tensorrt-rtx", "fp16"), ORT], [latency.DEFAULT_SHAPE], repeats=3)
    return {**data, "network": network, "left_out": {}}


def test_device_times_with_and_without_copies(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    data = gpu_data(bundle, fake_blocks, "small")
    gpu, cpu = data["series"][0]["configurations"]
    assert gpu["device"]["median"] == pytest.approx(0.04 * 3 / 4)
    assert gpu["device_and_copies"]["median"] == pytest.approx(0.04)
    assert gpu["device_bytes"] == 2**30
    assert cpu["device"] is None
    header = to_markdown(report_of(data)).splitlines()[4]
    assert "| device s | device and copies s |" in header


def test_the_verdict_is_given_on_the_papers_card_alone(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    data = gpu_data(bundle, fake_blocks, "small")
    found = verdicts(report_of(data, ("NVIDIA GeForce RTX 4090",)))
    assert [v["applies"] for v in found] == [True, True]
    assert [v["ratio"] for v in found] == pytest.approx([0.03 / 0.042, 0.04 / 0.042])
    assert "without copies, by tensorrt-rtx fp16" in found[0]["text"]
    (other, _) = verdicts(report_of(data, ("NVIDIA H100",)))
    assert not other["applies"]
    assert "NVIDIA H100" in other["text"]


def test_on_a_cpu_the_comparison_does_not_apply(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    fake_blocks(lambda *_: block([1.0]))
    data = {**measure(bundle, [ORT], [SHAPE], repeats=1), "network": "small", "left_out": {}}
    (found,) = verdicts(report_of(data))
    assert not found["applies"]
    assert "does not apply on a CPU (Some CPU)" in found["text"]
    assert found["text"] in to_markdown(report_of(data))


# --- workers ------------------------------------------------------------------------------------------------------


def spec(bundle: Bundle, folder: Path, **changes: object) -> Spec:
    latency._write_pair(folder, SHAPE)
    values = {
        "bundle": str(bundle.path),
        "backend": "onnxruntime",
        "precision": "fp32",
        "left": str(folder / "left-64x96.png"),
        "right": str(folder / "right-64x96.png"),
        "threads": 1,
        "checkpoint": None,
        "warm_up": 0.0,
        "seconds": 1e6,
        "most": 3,
        "restored": str(folder / "restored.npy"),
        "spawned": time.time(),
    }
    return Spec(**(values | changes))  # type: ignore[arg-type]


def test_a_block_holds_every_run_and_stage(bundle: Bundle, tmp_path: Path) -> None:
    asked = spec(bundle, tmp_path)
    found = latency_worker.measure(asked)
    assert len(found.seconds) == 3
    assert set(found.stages) == {"prepare", "clip", "blur_logits", "deblur", "finish"}
    assert {len(values) for values in found.stages.values()} == {3}
    assert set(found.files) == {"read", "write"}
    assert set(found.start_up) == {"process", "load", "first"}
    assert found.host_bytes > 2**20
    assert not found.gpu
    left, right = (read_photo(path).pixels for path in (asked.left, asked.right))
    assert left.shape == (*SHAPE, 3)
    expected = Deblurrer(bundle, backend="onnxruntime", precision="fp32", threads=1)(left, right).restored
    np.testing.assert_array_equal(np.load(tmp_path / "restored.npy"), expected)


@pytest.mark.parametrize(("lazy", "limit", "counted"), [(False, 0.0, 1), (False, 60.0, 0), (True, 0.0, 0)])
def test_a_long_first_run_of_torch_is_counted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: bool, limit: float, counted: int
) -> None:
    calls: list[float] = []

    def run(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        calls.append(0.5 + len(calls))
        return left, {"deblur": calls[-1]}

    monkeypatch.setattr(latency_worker, "FIRST_COUNTS", limit)
    monkeypatch.setattr(
        latency_worker, "_open", lambda _: latency_worker._Opened(run, "a CPU", gpu=False, events=False, lazy=lazy)
    )
    got = latency_worker.measure(spec(bundle, tmp_path, warm_up=0.0, seconds=0.0, most=1))
    assert len(got.seconds) == 1
    assert got.stages == {"deblur": [0.5 if counted else 1.5]}
    assert len(calls) == 2 - counted


def test_a_worker_tells_of_an_error_in_its_result(bundle: Bundle, tmp_path: Path) -> None:
    files = tmp_path / "spec.json", tmp_path / "block.json"
    files[0].write_text(json.dumps(vars(spec(bundle, tmp_path, precision="bf17"))))
    latency_worker.main([str(file) for file in files])
    assert "bf17" in json.loads(files[1].read_text())["error"]


def test_the_command_measures_in_processes_and_writes_its_result(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    latency.add_arguments(parser)
    options = ["--bundle", str(bundle.path), "--backend", "onnxruntime:fp32", "--shape", "40x48", "--threads", "1"]
    monkeypatch.setattr(latency, "BLOCK_SECONDS", 0.05)
    latency.run(parser.parse_args([*options, "--repeats", "2", "-o", str(tmp_path)]))
    assert {path.name for path in tmp_path.iterdir()} == {"latency-tiny.json", "latency-tiny.md"}
    report = Report.read(tmp_path / "latency-tiny.json")
    (series,) = report.data["series"]
    (entry,) = series["configurations"]
    assert series["shape"] == [40, 48]
    assert entry["error"] is None
    assert len(entry["blocks"]) == report.data["settings"]["rounds"] == 2
    assert entry["ratios"] == {}
    assert to_markdown(report) in capsys.readouterr().out


def test_a_process_that_dies_is_a_failure_with_its_last_words(bundle: Bundle, tmp_path: Path) -> None:
    latency._write_pair(tmp_path, SHAPE)
    (tmp_path / f"left-{latency._size(SHAPE)}.png").write_bytes(b"")
    track = latency._Track(Contender("onnxruntime", "fp32"), SHAPE)
    latency._add_block(track, bundle, tmp_path, False, 1, None)
    assert track.blocks == []
    assert track.error is not None
    assert "left-64x96.png" in track.error
