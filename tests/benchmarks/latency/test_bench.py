import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.harness.machine import Commit
from benchmarks.harness.options import DEFAULT_SHAPE
from benchmarks.harness.results import BenchmarkError, BundleId, Report
from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.latency import bench as latency
from benchmarks.latency.contenders import Contender
from benchmarks.latency.tables import to_markdown
from benchmarks.latency.verdict import verdicts
from benchmarks.latency.worker import Block
from benchmarks.report.tables import latency_table
from ldp_runtime.bundle.bundle import Bundle

SHAPE = (64, 96)
ORT, TORCH, LAST = (
    Contender("onnxruntime", "fp32"),
    Contender("torch", "fp32"),
    Contender("torch-channels-last", "fp32"),
)


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


def measure(bundle: Bundle, contenders: list[Contender], *arguments: Any, **options: Any) -> dict[str, Any]:
    (data,) = latency.measure([(bundle, contenders)], *arguments, **options)
    return data


FakeBlocks = Callable[[Callable[[Contender, int], Block | str]], list[str]]


@pytest.fixture
def fake_blocks(monkeypatch: pytest.MonkeyPatch) -> FakeBlocks:
    """Replaces worker processes by a synthetic clock; returns the contenders of the blocks in their order."""

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
        monkeypatch.setattr(latency, "write_pair", lambda *_: None)
        return asked

    return install


def report_of(data: dict[str, Any], gpus: tuple[str, ...] = ()) -> Report:
    machine = {"summary": "here", "cpu": {"name": "Some CPU"}, "gpus": [{"name": name} for name in gpus]}
    return Report("latency", machine, "2026-01-02T03:04:05Z", Commit(None, False), BundleId("b", "0" * 64, True), data)


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


def test_networks_are_timed_in_turn_and_compared_with_the_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, name="other"))
    seconds = {("tiny", ORT): 2.0, ("tiny", TORCH): 8.0, ("other", ORT): 1.0, ("other", TORCH): 2.0}
    asked = []

    def add(track: Any, *_: object) -> None:
        asked.append(key := (track.bundle.manifest.name, track.contender))
        track.blocks.append(block([seconds[key]]))

    monkeypatch.setattr(latency, "_add_block", add)
    monkeypatch.setattr(latency, "write_pair", lambda *_: None)
    both = latency.measure([(bundle, [ORT, TORCH]), (other, [ORT, TORCH])], [SHAPE], repeats=2)
    assert set(asked[:4]) == set(asked[4:]) == seconds.keys()
    ratios = [
        [{name: ratio["value"] for name, ratio in c["ratios"].items()} for c in data["series"][0]["configurations"]]
        for data in both
    ]
    assert ratios[0] == [{"torch fp32": 0.25}, {"torch fp32": 1.0}]
    assert ratios[1] == [{"tiny": 0.5, "torch fp32": 0.5}, {"tiny": 0.25, "torch fp32": 1.0}]
    assert both[0]["beside"] is None
    assert both[1]["beside"]["name"] == "tiny"
    first, second = (report_of({**data, "left_out": {}}) for data in both)
    for table in (to_markdown, latency_table):
        assert "/ tiny |" not in table(first)
        assert "/ tiny |" in table(second)


def test_nothing_to_time_is_an_error(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    fake_blocks(lambda *_: "no such device")
    with pytest.raises(BenchmarkError, match="onnxruntime fp32: no such device"):
        measure(bundle, [ORT], [SHAPE], repeats=1)


def test_images_are_compared_with_torchs(
    bundle: Bundle, fake_blocks: FakeBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    images = {TORCH.name: image, ORT.name: image ^ 1, LAST.name: image}

    def add(track: Any, folder: Path, *_: object) -> None:
        track.blocks.append(block([1.0]))
        np.save(latency._restored(folder, track, track.contender), images[track.contender.name])

    monkeypatch.setattr(latency, "_add_block", add)
    found = measure(bundle, [ORT, TORCH, LAST], [SHAPE], repeats=1)["series"][0]["configurations"]
    assert found[0]["psnr_to_torch_db"] == pytest.approx(20 * math.log10(255))
    assert [c["equal_to_torch"] for c in found] == [False, True, True]
    images[ORT.name] = 255 - image
    with pytest.raises(BenchmarkError, match="not what the bundle was exported from"):
        measure(bundle, [ORT, TORCH], [SHAPE], repeats=1)


def gpu_data(bundle: Bundle, fake_blocks: FakeBlocks, network: str) -> dict[str, Any]:
    fake_blocks(lambda contender, _: block([0.04] * 3, events=contender.backend == "tensorrt-rtx"))
    data = measure(bundle, [Contender("tensorrt-rtx", "fp16"), ORT], [DEFAULT_SHAPE], repeats=3)
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
    assert [v.ratio for v in found] == pytest.approx([0.03 / 0.042, 0.04 / 0.042])
    assert "without copies, by tensorrt-rtx fp16" in found[0].text
    (other, _) = verdicts(report_of(data, ("NVIDIA H100",)))
    assert other.ratio is None
    assert "NVIDIA H100" in other.text


def test_on_a_cpu_the_comparison_does_not_apply(bundle: Bundle, fake_blocks: FakeBlocks) -> None:
    fake_blocks(lambda *_: block([1.0]))
    data = {**measure(bundle, [ORT], [SHAPE], repeats=1), "network": "small", "left_out": {}}
    (found,) = verdicts(report_of(data))
    assert found.ratio is None
    assert "does not apply on a CPU (Some CPU)" in found.text
    assert found.text in to_markdown(report_of(data))


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


def test_a_worker_that_fails_is_the_error_of_its_track(bundle: Bundle, tmp_path: Path) -> None:
    write_pair(tmp_path, SHAPE)
    pair_files(tmp_path, SHAPE)[0].write_bytes(b"")
    track = latency._Track(bundle, Contender("onnxruntime", "fp32"), SHAPE)
    latency._add_block(track, tmp_path, False, 1, None)
    assert track.blocks == []
    assert track.error is not None
    assert "left-64x96.png" in track.error
