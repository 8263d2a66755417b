"""Builds of engines, real ones: TensorRT-RTX needs no GPU for them."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ldp_export.bundling import engine
from ldp_export.bundling.engine import EngineError, SizeRange, build_engines, profiles
from ldp_export.bundling.tensorrt_builder import Plan, Progress, TensorRT, widen_kernel
from ldp_export.cli import main
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.engines import ShapeRange, clip_shapes, deblur_shapes
from ldp_runtime.bundle.manifest import BlurMapSpec
from ldp_runtime.bundle.trust import is_trusted
from ldp_runtime.cuda import device
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH, Padding
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle, rewrite
from tests.processes import output

ROOT = Path(__file__).resolve().parents[3]
NANO = ROOT / "models" / "ldp-nano"
PADDING = Padding(32)
ONE_ARCH = ["sm_86"]
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")


@pytest.fixture(autouse=True)
def own_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, whose engines build in a moment."""
    return shutil.copytree(pristine, tmp_path / "bundles" / "tiny")


def sizes(*size: int) -> SizeRange:
    return SizeRange.fixed(PADDING, (size[0], size[1]))


def build(folder: Path, size: SizeRange | None = None, **options: Any) -> list[Any]:
    return build_engines(Bundle.load(folder), size or sizes(64, 96), architectures=ONE_ARCH, **options)


def keys(folder: Path) -> set[str]:
    return {entry.key for entry in Bundle.load(folder).manifest.engines}


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any] | None = None) -> Path:
    """A graph of FP16 ``x (1, 8, 4, 4)`` to ``y``."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, s) for n, s in (("x", [1, 8, 4, 4]), ("y", None))]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


X = {"x": ShapeRange(*[(1, 8, 4, 4)] * 3)}


# --- sizes


def test_sizes_are_padded_and_rise() -> None:
    assert str(SizeRange.covering(PADDING, None, None, None)) == "32x32 to 2240x3360, tuned for 1120x1696"
    assert SizeRange.covering(PADDING, (100, 100), None, (200, 300)) == SizeRange((128, 128), (224, 320), (224, 320))
    assert SizeRange.covering(PADDING, None, (3000, 100), None) == SizeRange((32, 32), (3008, 128), (3008, 3360))
    assert SizeRange.covering(PADDING, (1500, 33), None, None) == SizeRange((1504, 64), (1504, 1696), (2240, 3360))
    assert SizeRange.fixed(PADDING, (513, 769)) == SizeRange((544, 800), (544, 800), (544, 800))
    for low, opt, high in (((64, 64), (32, 99), None), (None, (64, 64), (99, 32)), ((64, 640), None, (640, 64))):
        with pytest.raises(EngineError, match="expected sizes that rise"):
            SizeRange.covering(PADDING, low, opt, high)


def test_profiles_tie_the_logits_to_the_pair_and_the_batch_to_the_windows() -> None:
    manifest = read_manifest(NANO)  # patch 16, windows of 128 px that share 16
    fixed = profiles(manifest, SizeRange.fixed(manifest.padding, (512, 768)))
    assert fixed["deblur"] == {
        "pair": ShapeRange(*[(1, 6, 512, 768)] * 3),
        "blur_logits": ShapeRange(*[(1, 1, 32, 48)] * 3),
    }
    assert fixed["clip"]["stereo"] == ShapeRange(*[(35, 3, 128, 256)] * 3)  # 5 x 7 windows
    free = profiles(manifest, SizeRange.covering(manifest.padding, None, None, None))
    assert free["deblur"]["blur_logits"] == ShapeRange((1, 1, 2, 2), (1, 1, 70, 106), (1, 1, 140, 210))
    # 10 x 15 windows of the size to tune for, in three batches
    assert [shape[0] for shape in msgspec.structs.astuple(free["clip"]["stereo"])] == [1, 50, ENGINE_CLIP_BATCH]
    one = profiles(
        msgspec.structs.replace(manifest, ensemble="blur-aware"), SizeRange.fixed(manifest.padding, (512, 768))
    )
    assert one["clip"] == {"center": ShapeRange(*[(35, 3, 128, 128)] * 3)}


# --- building


@needs_rtx
@pytest.mark.parametrize("name", ["tiny", pytest.param("ldp-nano", marks=pytest.mark.slow)])
def test_a_bundle_builds_with_no_gpu_and_no_warning(name: str, pristine: Path, tmp_path: Path) -> None:
    source = NANO if name == "ldp-nano" else pristine
    folder = shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("engines"))
    manifest = read_manifest(folder)
    assert manifest.clip is not None
    save_manifest(folder, msgspec.structs.replace(manifest, engines=()))
    lines: list[str] = []
    bundle = Bundle.load(folder)
    options: dict[str, Any] = {"architectures": ["sm_86", "sm_89", "sm_120"], "report": lines.append}
    entries = build_engines(bundle, SizeRange.covering(manifest.padding, None, None, None), **options)
    assert not [line for line in lines if "warns" in line]
    assert [entry.kind for entry in entries] == ["clip", "deblur"]
    bundle = Bundle.load(folder)
    assert keys(folder) == {entry.key for entry in entries}
    version = TensorRT("rtx").version
    for entry in entries:
        assert entry.targets == ("sm_86", "sm_89", "sm_120")
        assert entry.version == version
        assert [len(bundle.read_engine(file)) for file in entry.files] == [file.size for file in entry.files]
        assert entry.total_size == sum((folder / file.file).stat().st_size for file in entry.files)
        weights = bundle.graph(entry.kind, "fp16").stat().st_size
        assert weights < entry.total_size
        assert entry.total_size < 8 * weights or name == "tiny"  # whose weights are next to nothing
        assert all(is_trusted(file.sha256) for file in entry.files)
    assert [len(entry.files) for entry in entries] == [1, 2]
    asked: dict[str, Any] = {"flavour": "rtx", "version": version, "arch": "sm_89"}
    assert bundle.find_engine("deblur", shapes=deblur_shapes(1120, 1696, 16), **asked) == entries[1]
    shapes = clip_shapes(17, manifest.clip.window, manifest.canvases)
    assert bundle.find_engine("clip", shapes=shapes, **asked) == entries[0]
    with pytest.raises(BackendError, match="build one with"):
        bundle.find_engine("deblur", shapes=deblur_shapes(64, 64, 16), **{**asked, "arch": "sm_75"})
    assert sorted(p.name for p in (folder / "engines").iterdir()) == sorted(
        Path(file.file).name for entry in entries for file in entry.files
    )


@needs_rtx
def test_the_command_builds_turing_apart_and_says_so(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", str(tiny), "--shape", "33x65"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{tiny}: 4 engines, ")
    assert "sizes, padded: 64x96" in output.err
    built = [(entry.kind, entry.targets) for entry in Bundle.load(tiny).manifest.engines]
    ampere = ("sm_86", "sm_89", "sm_120")
    assert sorted(built) == [(k, t) for k in ("clip", "deblur") for t in (("sm_75",), ampere)]
    assert main(["engine", str(tiny), "--shape", "33x65"]) == 0
    assert capsys.readouterr().err.count("there already") == 4


@needs_rtx
def test_nothing_is_built_twice(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tiny)
    before = state(tiny)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(TensorRT, "build", refuse)
    monkeypatch.setitem(sys.modules, "ldp_export.bundling.cut", None)  # nor cut again
    assert build(tiny) == first
    assert state(tiny) == before
    with pytest.raises(AssertionError, match="built again"):
        build(tiny, sizes(64, 128), whole=True)


@needs_rtx
def test_an_engine_that_was_built_elsewhere_is_not_trusted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(tiny)
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "another machine"))
    lines: list[str] = []
    assert build(tiny, report=lines.append) == first
    assert not any(is_trusted(file.sha256) for entry in first for file in entry.files)
    assert [line.endswith(f"; not built here, to run it: ldp trust {tiny}") for line in lines] == [True, True]


@needs_rtx
def test_engines_do_not_go_through_a_link_out_of_the_bundle(tiny: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "other.engine").write_bytes(b"of another bundle")
    (tiny / "engines").symlink_to(outside)
    with pytest.raises(BundleError, match="got a link to elsewhere; remove it"):
        build(tiny)
    assert state(outside) == {"other.engine": b"of another bundle"}


@needs_rtx
def test_engines_of_several_profiles_and_targets_stand_side_by_side(tiny: Path) -> None:
    first = build(tiny)
    second = build(tiny, SizeRange.covering(PADDING, None, (64, 96), (128, 128)))
    third = build_engines(Bundle.load(tiny), sizes(64, 96), architectures=["sm_120"])
    assert len({entry.key for entry in (*first, *second, *third)}) == 6
    assert keys(tiny) == {entry.key for entry in (*first, *second, *third)}


@needs_rtx
def test_two_builds_at_once_lose_no_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_read = threading.Barrier(2)

    def save_late(*arguments: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):  # the other waits its turn
            both_read.wait(1)
        return save_manifest(*arguments)

    monkeypatch.setattr(engine, "save_manifest", save_late)
    monkeypatch.setattr(TensorRT, "build", lambda *_, **__: Plan(b"an engine", (), (), 1))
    with ThreadPoolExecutor(2) as threads:
        built = threads.map(lambda width: build(tiny, sizes(64, width), whole=True), (64, 96))
    made = {entry.key for entries in built for entry in entries}
    assert len(made) == 4
    assert keys(tiny) == made


@needs_rtx
def test_engines_of_another_graph_are_taken_off(tiny: Path, tmp_path: Path) -> None:
    old = build(tiny)
    shutil.copy(make_tiny_bundle(tmp_path / "other", seed=1) / "deblur.fp16.onnx", tiny / "deblur.fp16.onnx")
    rewrite(tiny, engines=tuple(old))
    (tiny / "engines" / "orphan.engine").write_bytes(b"of nobody")
    new = build(tiny)
    assert new[0] == old[0], "CLIP's graph is the same"
    assert new[1].key != old[1].key
    assert keys(tiny) == {entry.key for entry in new}
    assert len(list((tiny / "engines").iterdir())) == 3  # the deblur graph's in two parts


@needs_rtx
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"junk"), lambda path: path.unlink()])
def test_a_damaged_engine_is_built_again(tiny: Path, damage: Callable[[Path], object], part: int) -> None:
    first = build(tiny)
    damage(tiny / first[1].files[part].file)
    with pytest.raises(BundleError):
        Bundle.load(tiny).read_engine(first[1].files[part])
    second = build(tiny)
    assert [entry.key for entry in second] == [entry.key for entry in first]
    bundle = Bundle.load(tiny)
    assert keys(tiny) == {entry.key for entry in second}
    assert all(bundle.read_engine(file) for file in second[1].files)


@needs_rtx
def test_a_whole_engine_stands_beside_one_in_two_parts_which_is_preferred(tiny: Path) -> None:
    (_, whole), (_, cut) = build(tiny, whole=True), build(tiny)
    assert (len(whole.files), len(cut.files)) == (1, 2)
    assert whole.key != cut.key
    assert "deblur in two parts by" in str(cut)
    assert "parts" not in str(whole)
    bundle = Bundle.load(tiny)
    assert all(entry in bundle.manifest.engines for entry in (whole, cut))
    asked: dict[str, Any] = {"flavour": "rtx", "version": cut.version, "arch": "sm_86"}
    assert bundle.find_engine("deblur", shapes=deblur_shapes(64, 96, 16), **asked) == cut
    stored = {entry["key"]: entry for entry in json.loads((tiny / "bundle.json").read_text())["engines"]}
    assert ("head" in stored[cut.key], "head" in stored[whole.key]) == (True, False)


@needs_rtx
def test_a_network_that_reads_no_blur_map_stays_whole(tmp_path: Path) -> None:
    (deblur,) = build(make_tiny_bundle(tmp_path, clip=False))
    assert len(deblur.files) == 1


@needs_rtx
def test_another_version_has_other_engines(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tiny)
    monkeypatch.setattr("tensorrt_rtx.__version__", "99.0")
    second = build(tiny)
    assert {entry.version for entry in second} == {"99.0"}
    assert {entry.key for entry in second}.isdisjoint(entry.key for entry in first)
    assert keys(tiny) == {entry.key for entry in (*first, *second)}, "those of the other machine stay"


class Recorder(Progress):
    def __init__(self, on_start: Callable[[str], None] = lambda phase: None) -> None:
        self.phases: list[str] = []
        self.steps, self.depth, self.deepest = 0, 0, 0
        self._on_start = on_start

    def start(self, phase: str, steps: int) -> None:
        assert steps > 0
        self.phases.append(phase)
        self.depth += 1
        self.deepest = max(self.depth, self.deepest)
        self._on_start(phase)

    def step(self) -> None:
        self.steps += 1

    def finish(self) -> None:
        self.depth -= 1


@needs_rtx
def test_progress_is_told(tiny: Path) -> None:
    recorders: dict[str, Recorder] = {}

    @contextlib.contextmanager
    def progress(title: str) -> Iterator[Progress]:
        yield recorders.setdefault(title, Recorder())

    build(tiny, progress=progress)
    assert list(recorders) == ["clip for sm_86", "head for sm_86", "deblur for sm_86"]
    for recorder in recorders.values():
        assert len(recorder.phases) > 3
        assert recorder.steps > 10
        assert recorder.deepest > 1
        assert recorder.depth == 0


@pytest.mark.usefixtures("heeds_sigint")
@needs_rtx
def test_ctrl_c_stops_the_build_and_leaves_nothing_of_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldp_export.commands import engine as command

    whole = Recorder()
    TensorRT("rtx").build(
        tiny / "deblur.fp16.onnx", profiles(read_manifest(tiny), sizes(64, 96))["deblur"], ONE_ARCH, progress=whole
    )

    def press(phase: str) -> None:
        if len(recorder.phases) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
                time.sleep(0.005)  # until the main thread has heard it and cancelled the build

    recorder = Recorder(press)

    @contextlib.contextmanager
    def interrupted(title: str) -> Iterator[Progress]:
        yield recorder if title.startswith("deblur") else Progress()

    monkeypatch.setattr(command, "_bar", interrupted)
    assert main(["engine", str(tiny), "--shape", "64x96", "--arch", "sm_86"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ldp-export: interrupted"
    assert 0 < len(recorder.phases) < len(whole.phases), "the build had begun and did not go on to its end"
    (kept,) = Bundle.load(tiny).manifest.engines
    assert kept.kind == "clip", "what was whole before stays"
    assert [path.name for path in (tiny / "engines").iterdir()] == [Path(kept.file).name]
    monkeypatch.undo()
    assert len(build(tiny)) == 2


@needs_rtx
def test_a_folder_that_cannot_be_written_is_an_error_of_the_users(tiny: Path) -> None:
    (tiny / "engines").write_bytes(b"a file, not a folder")
    before = state(tiny)
    with pytest.raises(BundleError, match="copy the bundle to a folder of yours"):
        build(tiny)
    assert state(tiny) == before


@pytest.mark.parametrize(("channels", "size"), [(8, (3, 3)), (24, (3, 1))])
def test_a_widened_depthwise_kernel_computes_the_same(channels: int, size: tuple[int, int]) -> None:
    import torch
    from torch.nn import functional as F

    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((channels, 1, *size)).astype(np.float32)
    x = torch.from_numpy(rng.standard_normal((1, channels, 9, 7)).astype(np.float32))
    wide = widen_kernel(kernel)
    assert wide.shape == (channels, 8, *size)
    assert np.count_nonzero(wide) == kernel.size
    expected = F.conv2d(x, torch.from_numpy(kernel), groups=channels)
    torch.testing.assert_close(F.conv2d(x, torch.from_numpy(wide), groups=channels // 8), expected)


@needs_rtx
def test_an_engine_for_turing_holds_no_padding(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 would put 7 zero maps a channel of a depthwise convolution into an engine of one size."""
    weights = {"weight": np.ones((64, 1, 3, 3), np.float16), "bias": np.ones(64, np.float16)}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, 64, 256, 384]) for n in ("x", "y")]
    node = helper.make_node("Conv", ["x", "weight", "bias"], ["y"], group=64, pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], tensors)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "depthwise.onnx")
    profile = {"x": ShapeRange(*[(1, 64, 256, 384)] * 3)}
    turing, ampere = (TensorRT("rtx").build(tmp_path / "depthwise.onnx", profile, [a]) for a in ("sm_75", "sm_86"))
    padding = 7 * 64 * 256 * 384 * 2
    assert len(ampere.content) < padding / 20
    assert len(turing.content) < padding / 20


# --- what cannot be built


def test_a_bundle_of_another_kind_is_refused(tiny: Path) -> None:
    bundle = Bundle.load(tiny)
    patches = msgspec.structs.replace(bundle.manifest, blur_map=BlurMapSpec("patch", "map", 40))
    with pytest.raises(EngineError, match="of another kind that no engine runs"):
        build_engines(dataclasses.replace(bundle, manifest=patches), sizes(64, 96))


@needs_rtx
@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        ("sm_90", "TensorRT-RTX 1.* builds engines for here .*sm_75, .*got sm_90; for other GPUs"),
        ("sm_80", r"for here \(sm_75, sm_86, sm_89, sm_120, sm_121\), got sm_80; for other GPUs"),
        ("sm_86,sm_61", "got sm_61"),
        ("89", "give architectures such as sm_89,sm_120"),
        ("", "give architectures such as sm_89,sm_120"),
    ],
)
def test_an_unknown_architecture_is_refused(
    tiny: Path, architectures: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(tiny), "--arch", architectures]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error), error
    assert not (tiny / "engines").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "64"], "expected a size as HEIGHTxWIDTH in px, such as 1120x1680, got '64'"),
        (["--shape", "64x64", "--min", "32x32"], "expected --shape alone"),
        (["--min", "128x128", "--max", "64x640"], "expected sizes that rise"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tiny: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(tiny), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("flavour", "module"), [("rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt")])
def test_without_the_library_the_error_says_what_to_install(
    tiny: Path, flavour: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["engine", str(tiny), "--flavour", flavour]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"needs the package {module}, which cannot be imported" in said
    assert ("ldp[rtx]" if flavour == "rtx" else "--flavour rtx") in said
    with pytest.raises(BackendError, match="one of rtx, tensorrt, got 'lean'"):
        TensorRT("lean")


@needs_rtx
def test_the_enterprise_tensorrt_needs_its_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(index: int = 0) -> None:
        raise device.NoGpuError("no GPU here")

    monkeypatch.setitem(sys.modules, "tensorrt", __import__("tensorrt_rtx"))  # the calls are the same
    monkeypatch.setattr(device, "open_device", no_gpu)
    with pytest.raises(BackendError, match=r"builds only where the GPU is, .*no GPU here; build there, or with"):
        build_engines(Bundle.load(tiny), sizes(64, 96), "tensorrt")


@needs_rtx
def test_the_enterprise_tensorrt_builds_for_the_gpu_that_is_there(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    class Enterprise:
        """TensorRT-RTX without what the enterprise TensorRT has not."""

        def __getattr__(self, name: str) -> Any:
            assert name != "ComputeCapability"
            return getattr(tensorrt_rtx, name)

    monkeypatch.setitem(sys.modules, "tensorrt", Enterprise())  # type: ignore[arg-type]
    monkeypatch.setattr(device, "open_device", lambda: type("Gpu", (), {"arch": "sm_90"}))
    entries = build_engines(Bundle.load(tiny), sizes(64, 96), "tensorrt")
    assert [(e.flavour, e.targets) for e in entries] == [("tensorrt", ("sm_90",))] * 2
    with pytest.raises(BackendError, match=r"builds engines for here \(sm_90\), got sm_89"):
        build_engines(Bundle.load(tiny), sizes(64, 96), "tensorrt", ["sm_89"])


@needs_rtx
@pytest.mark.parametrize(
    ("node", "shown"),
    [
        (helper.make_node("Foo", ["x"], ["y"], name="odd_one", domain="own"), "node 'odd_one' (Foo): "),
        (helper.make_node("Det", ["x"], ["y"], name="minor"), "node 'minor' (Det): "),
    ],
)
def test_errors_of_the_parser_name_the_nodes(tmp_path: Path, node: onnx.NodeProto, shown: str) -> None:
    path = save(tmp_path / "odd.onnx", [node])
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1.* does not take odd\.onnx: ") as caught:
        TensorRT("rtx").build(path, X, ONE_ARCH)
    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_rtx
@pytest.mark.parametrize("part", ["head", "rest"])
def test_an_error_names_the_part_of_the_bundle_s_graph(tiny: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = importlib.import_module("tensorrt_rtx").OnnxParser
    parse = parser.parse_from_file
    monkeypatch.setattr(parser, "parse_from_file", lambda own, path: f"{part} of" not in path and parse(own, path))
    with pytest.raises(BackendError, match=rf"does not take {part} of deblur\.fp16\.onnx: "):
        build(tiny)


@needs_rtx
def test_a_file_that_is_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(BackendError, match=r"does not take junk\.onnx: \S"):
        TensorRT("rtx").build(tmp_path / "junk.onnx", X, ONE_ARCH)


@needs_rtx
def test_a_profile_that_does_not_suit_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(BackendError, match=r"cannot build relu\.onnx for sm_86 and x 1x8x4x4 to 1x8x8x8: .*static"):
        TensorRT("rtx").build(path, {"x": ShapeRange((1, 8, 4, 4), (1, 8, 4, 4), (1, 8, 8, 8))}, ONE_ARCH)
    with pytest.raises(BackendError, match=r"expected relu\.onnx with the inputs pair, got x"):
        TensorRT("rtx").build(path, {"pair": X["x"]}, ONE_ARCH)


@needs_rtx
def test_a_build_after_one_that_failed_has_messages_of_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(BackendError) as kept:  # with the frames where its builder is
        TensorRT("rtx").build(path, {"pair": X["x"]}, ONE_ARCH)
    plan = TensorRT("rtx").build(path, X, ONE_ARCH, detailed=True)
    assert plan.warnings == () and plan.messages
    assert kept.tb is not None


@needs_rtx
def test_warnings_of_overflow_are_collected(tmp_path: Path) -> None:
    """The negative control of the builds above that have none: a layer normalisation in FP16."""
    names = (("ReduceMean", "x axis", "m"), ("Sub", "x m", "c"), ("Mul", "c c", "s"), ("ReduceMean", "s axis", "v"))
    names = (*names, ("Add", "v epsilon", "e"), ("Sqrt", "e", "d"), ("Div", "c d", "y"))
    nodes = [helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in names]
    path = save(tmp_path / "naive.onnx", nodes, {"axis": np.array([1]), "epsilon": np.array(1e-4, np.float16)})
    plan = TensorRT("rtx").build(path, X, ONE_ARCH)
    assert any("overflow" in warning for warning in plan.warnings)


GARBAGE = """
import gc
import sys
from pathlib import Path
from ldp_export.bundling import tensorrt_builder as engine
from ldp_runtime.bundle.engines import ShapeRange

make_log, kept = engine._log, []

def log_that_allocates(trt):
    log = make_log(trt)

    class Log(type(log)):
        def log(self, severity, message):
            kept.append([[] for _ in range(2000)])  # the collector runs, unless it is off
            super().log(severity, message)

    log.__class__ = Log
    return log

tensorrt = engine.TensorRT("rtx")
gc.set_threshold(1000)
gc.collect()
builders = [tensorrt._trt.Builder(make_log(tensorrt._trt))]
builders.append(builders)
del builders  # a cycle, which waits for the collector
engine._log = log_that_allocates
tensorrt.build(Path(sys.argv[1]), {"x": ShapeRange(*[(1, 8, 4, 4)] * 3)}, ["sm_86"])
assert kept and gc.isenabled()
"""


@needs_rtx
def test_a_builder_that_is_garbage_does_not_hold_up_the_next(tmp_path: Path) -> None:
    path = save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    output(GARBAGE, str(path))


# --- the command without torch


@needs_rtx
def test_the_command_needs_no_torch(tiny: Path, tmp_path: Path) -> None:
    blocked = ("torch", "torchvision", "open_clip", "onnxscript", "scipy", "skimage")
    code = "import sys; from ldp_export.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ("engine", str(tiny), "--shape", "64x96", "--arch", "sm_86")
    output(code, *arguments, blocked=blocked, LDP_CONFIG=str(tmp_path / "own"))
    assert len(Bundle.load(tiny).manifest.engines) == 2


def test_the_module_imports_neither_torch_nor_tensorrt() -> None:
    heavy = "{'torch', 'onnx', 'tensorrt_rtx', 'tensorrt'}"
    assert output(f"import ldp_export.bundling.engine, sys; print(*{heavy} & set(sys.modules))") == "\n"
