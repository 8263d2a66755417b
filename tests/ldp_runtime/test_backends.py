from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from ldp_runtime.backends import openvino as openvino_backend
from ldp_runtime.backends.base import PRECISIONS, Session, graph_precision
from ldp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from ldp_runtime.backends.openvino import OpenVinoBackend
from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.registry import AUTO_ORDER, BACKENDS, select
from ldp_runtime.tensors import TensorSpec
from tests.ldp_runtime.tiny_bundle import EMBED_DIM, PATCH, WINDOW, deblur_graph

CPU_BACKENDS = ("openvino", "onnxruntime")
HAS_BF16 = "bf16" in BACKENDS["openvino"].precisions
HAS_FP16 = "FP16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_graph(name: str, path: Path, precision: str = "fp32") -> Session:
    return BACKENDS[name].open(path, precision, threads=1)


def deblur_feeds(h: int = 64, w: int = 96, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "pair": rng.random((1, 6, h, w), dtype=np.float32),
        "blur_logits": rng.standard_normal((1, 1, h // PATCH, w // PATCH)).astype(np.float32),
    }


def clip_feeds(batch: int = 3, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "stereo": rng.standard_normal((batch, 3, WINDOW, 2 * WINDOW)).astype(dtype),
        "center": rng.standard_normal((batch, 3, WINDOW, WINDOW)).astype(dtype),
    }


# --- sessions


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_session_states_its_tensors(name: str, bundle: Path) -> None:
    clip = open_graph(name, bundle / "clip.onnx")
    assert [spec.name for spec in clip.inputs] == ["stereo", "center"]
    assert [spec.name for spec in clip.outputs] == ["stereo_features", "center_features"]
    assert clip.inputs[0].shape[1:] == (3, WINDOW, 2 * WINDOW)
    assert isinstance(clip.inputs[0].shape[0], str)
    assert {spec.dtype for spec in clip.inputs + clip.outputs} == {np.dtype(np.float32)}
    assert {spec.dtype for spec in open_graph(name, bundle / "clip.fp16.onnx", "fp16").inputs} == {np.dtype(np.float16)}
    deblur = open_graph(name, bundle / "deblur.onnx")
    assert [spec.name for spec in deblur.inputs] == ["pair", "blur_logits"]
    assert [spec.name for spec in deblur.outputs] == ["restored"]


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_clip_graph_is_the_patch_embedding(name: str, bundle: Path) -> None:
    weight, bias = (onnx.numpy_helper.to_array(t) for t in onnx.load(bundle / "clip.onnx").graph.initializer)
    feeds = clip_feeds()
    outputs = open_graph(name, bundle / "clip.onnx").run(feeds)
    for view, ratio in (("stereo", 2), ("center", 1)):
        g = WINDOW // PATCH
        patches = feeds[view].reshape(3, 3, g, PATCH, ratio * g, PATCH)  # b c i y j x
        expected = np.einsum("bciyjx,ocyx->bijo", patches, weight) + bias
        assert outputs[f"{view}_features"].shape == (3, g, ratio * g, EMBED_DIM)
        np.testing.assert_allclose(outputs[f"{view}_features"], expected, atol=2e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 64)])
def test_backends_agree_and_one_session_serves_every_size(bundle: Path, size: tuple[int, int]) -> None:
    feeds = deblur_feeds(*size)
    ours, theirs = (open_graph(name, bundle / "deblur.onnx").run(feeds)["restored"] for name in CPU_BACKENDS)
    center = (feeds["pair"][:, :3] + feeds["pair"][:, 3:]) / 2
    assert np.abs(ours - center).max() > 0.01, "the network does nothing, so agreement proves nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_fp16_graph_is_near_the_fp32_graph(name: str, bundle: Path) -> None:
    feeds = deblur_feeds()
    full = open_graph(name, bundle / "deblur.onnx").run(feeds)["restored"]
    half = open_graph(name, bundle / "deblur.fp16.onnx", "fp16").run(feeds)["restored"]
    assert half.dtype == np.float32
    # Two roundings of FP16 near 1 where the nodes are computed in FP32, some more where the CPU has FP16 arithmetic.
    assert 0 < np.abs(half - full).max() < (2e-3 if HAS_FP16 and name == "openvino" else 4e-4)
    features = open_graph(name, bundle / "clip.fp16.onnx", "fp16").run(clip_feeds(dtype=np.float16))
    assert features["center_features"].dtype == np.float16


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
def test_bf16_never_rounds_the_skip(tmp_path: Path) -> None:
    """``restored = center + network``: bf16 may differ from FP32 by what it rounds of a tiny network."""
    onnx.save(deblur_graph(np.random.default_rng(0), np.dtype(np.float32), gain=1e-4), tmp_path / "g.onnx")
    feeds = deblur_feeds()
    center = (feeds["pair"][:, :3] + feeds["pair"][:, 3:]) * np.float32(0.5)
    full = open_graph("openvino", tmp_path / "g.onnx", "fp32").run(feeds)["restored"]
    short = open_graph("openvino", tmp_path / "g.onnx", "bf16").run(feeds)["restored"]
    residual = np.abs(full - center).max()
    assert 1e-4 < residual < 2e-3
    in_bf16 = (center.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)).view(np.float32)
    assert np.abs(in_bf16 - center).max() > residual / 2, "a rounded skip would not show"
    error = np.abs(short - full)
    assert error.max() < residual / 16, f"mean {error.mean()}, max {error.max()} at {error.argmax()}"
    assert error.max() > 0, "bf16 was not used"


def test_openvino_does_not_take_bf16_for_fp16(bundle: Path) -> None:
    """Against ONNX Runtime on the same FP16 graph: half or FP32 arithmetic is near, bf16 is not."""
    feeds = {name: value * 4 for name, value in clip_feeds().items()}
    theirs = open_graph("onnxruntime", bundle / "clip.onnx").run(feeds)["center_features"]
    feeds = {name: value.astype(np.float16) for name, value in feeds.items()}
    ours = open_graph("openvino", bundle / "clip.fp16.onnx", "fp16").run(feeds)["center_features"]
    error = np.abs(ours.astype(np.float32) - theirs).max() / np.abs(theirs).max()
    assert error < 1.2e-3, error


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_outputs_belong_to_the_caller(name: str, bundle: Path) -> None:
    session = open_graph(name, bundle / "deblur.onnx")
    first = session.run(deblur_feeds())["restored"]
    kept = first.copy()
    session.run(deblur_feeds(seed=5))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_strided_and_read_only_feeds_work_and_stay_as_they_are(name: str, bundle: Path) -> None:
    session = open_graph(name, bundle / "deblur.onnx")
    feeds = deblur_feeds()
    expected = session.run(feeds)["restored"]
    strided = np.repeat(feeds["pair"], 2, axis=3)[..., ::2]
    strided.flags.writeable = False
    before = strided.copy()
    found = session.run({"pair": strided, "blur_logits": feeds["blur_logits"]})["restored"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(strided, before)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_wrong_feeds_are_refused(name: str, bundle: Path) -> None:
    session = open_graph(name, bundle / "clip.onnx")
    feeds = clip_feeds(2)
    free = session.inputs[0].shape[0]
    cases = [
        ({}, "expected the inputs stereo, center, got none"),
        ({"stereo": feeds["stereo"]}, "expected the inputs stereo, center, got stereo"),
        (feeds | {"more": feeds["center"]}, "expected the inputs stereo, center, got stereo, center, more"),
        (
            feeds | {"center": feeds["center"].astype(np.float64)},
            f"expected the input center ({free}, 3, 64, 64) float32, got center (2, 3, 64, 64) float64",
        ),
        (
            feeds | {"center": feeds["center"][0]},
            f"expected the input center ({free}, 3, 64, 64) float32, got center (3, 64, 64) float32",
        ),
        (
            feeds | {"stereo": feeds["center"]},
            f"expected the input stereo ({free}, 3, 64, 128) float32, got stereo (2, 3, 64, 64) float32",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(BackendError) as caught:
            session.run(wrong)
        assert str(caught.value) == message


def test_a_run_that_onnxruntime_refuses_is_a_backend_error(bundle: Path) -> None:
    feeds = deblur_feeds()
    feeds["blur_logits"] = np.zeros((1, 1, 3, 5), np.float32)  # does not fit the pair
    with pytest.raises(BackendError, match=r"^onnxruntime failed: ") as caught:
        open_graph("onnxruntime", bundle / "deblur.onnx").run(feeds)
    assert "\n" not in str(caught.value)


def test_a_run_that_openvino_refuses_is_a_backend_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def infer(self, feeds: object, share_inputs: bool) -> None:
            raise RuntimeError("Exception from src:1\n  shapes differ")

    session = open_graph("openvino", bundle / "deblur.onnx")
    monkeypatch.setattr(session, "_request", Refuses())
    with pytest.raises(BackendError) as caught:
        session.run(deblur_feeds())
    assert str(caught.value) == "openvino failed: Exception from src:1 shapes differ"


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_names_are_the_graphs_own_though_nodes_at_its_ends_vanish(name: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["pair"], ["alias"]),
        helper.make_node("Relu", ["alias"], ["inner"]),
        helper.make_node("Identity", ["inner"], ["another"]),
        helper.make_node("Identity", ["another"], ["restored"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "W"]) for n in ("pair", "restored")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "g.onnx",
    )
    for _ in range(2):  # the second time from the cache
        session = BACKENDS[name].open(tmp_path / "g.onnx", "fp32", content="content")
        assert [spec.name for spec in session.inputs + session.outputs] == ["pair", "restored"]
        outputs = session.run({"pair": np.array([[-1.0, 2.0]], np.float32)})
        assert {key: array.tolist() for key, array in outputs.items()} == {"restored": [[0.0, 2.0]]}


# --- opening


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_broken_graph_is_a_backend_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x0a broken")
    with pytest.raises(BackendError) as caught:
        open_graph(name, path)
    assert str(caught.value).startswith(f"{name} cannot open {path} in fp32: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_unknown_precision_and_thread_count(name: str, bundle: Path) -> None:
    backend = BACKENDS[name]
    with pytest.raises(BackendError) as caught:
        backend.open(bundle / "clip.onnx", "fp8")
    assert str(caught.value) == (
        f"expected a precision of {name} on this machine ({', '.join(backend.precisions)}), got 'fp8'; "
        "choose one of these or auto"
    )
    with pytest.raises(BackendError, match="expected at least 1 thread, got 0; leave it out"):
        backend.open(bundle / "clip.onnx", "fp32", 0)


def test_openvino_keeps_what_it_compiles_by_content(bundle: Path, own_cache: Path) -> None:
    feeds = deblur_feeds()
    backend = BACKENDS["openvino"]
    plain = backend.open(bundle / "deblur.onnx", "fp32", 1).run(feeds)["restored"]
    assert not own_cache.exists(), "without a content hash nothing is kept"
    for _ in range(2):
        session = backend.open(bundle / "deblur.onnx", "fp32", 1, content="a" * 64)
        np.testing.assert_array_equal(session.run(feeds)["restored"], plain)
        assert len(list((own_cache / "openvino" / ("a" * 32)).glob("*.blob"))) == 1
    backend.open(bundle / "deblur.onnx", "fp32", 1, content="b" * 64)
    assert len(list((own_cache / "openvino").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "file"))
    BACKENDS["openvino"].open(bundle / "clip.onnx", "fp32", 1, content="a" * 64).run(clip_feeds())


# --- choosing


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_precisions_and_description(name: str) -> None:
    backend = BACKENDS[name]
    backend.available()
    assert set(backend.precisions) <= set(PRECISIONS)
    assert backend.resolve("auto") == backend.precisions[0]
    assert {"fp32", "fp16"} <= set(backend.precisions)
    assert backend.describe().lower().replace(" ", "").startswith(name)


def test_graph_of_each_precision() -> None:
    assert [graph_precision(precision) for precision in PRECISIONS] == ["fp32", "fp32", "fp16", "int8", "fp8-fp16"]


def test_auto_takes_openvino_and_bf16_where_the_cpu_has_it() -> None:
    backend, reason, _ = select()
    precision = "bf16" if HAS_BF16 else "fp32"
    assert backend.name == "openvino"
    assert reason == f"openvino in {precision}: {AUTO_ORDER['openvino']}"


def test_a_named_backend_is_taken_as_asked() -> None:
    backend, reason, _ = select("onnxruntime", "fp32")
    assert backend is BACKENDS["onnxruntime"]
    assert reason == "onnxruntime in fp32, as asked"


def test_auto_goes_on_when_openvino_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # import openvino now fails
    openvino_backend._core.cache_clear()
    backend, reason, _ = select()
    assert backend.name == "onnxruntime"
    assert reason.startswith(
        f"onnxruntime in fp32: {AUTO_ORDER['onnxruntime']}; openvino was passed over: "
        "openvino needs the package openvino with its CPU plugin, which does not load ("
    )
    with pytest.raises(BackendError, match=r"^openvino needs the package openvino"):
        select("openvino")
    with pytest.raises(BackendError, match=r"no backend works here in precision bf16: openvino: .*; onnxruntime: "):
        select("auto", "bf16")


def test_auto_passes_over_what_failed_before() -> None:
    backend, reason, _ = select(failed={"openvino": "it broke"})
    assert backend.name == "onnxruntime"
    assert reason.endswith("; openvino was passed over: it broke")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(BackendError) as caught:
        select("tensorflow")
    assert str(caught.value) == f"expected a backend, one of auto, {', '.join(BACKENDS)}, got 'tensorflow'"
    with pytest.raises(BackendError) as caught:
        select("auto", "fp4")
    assert str(caught.value) == "expected a precision, one of auto, fp32, bf16, fp16, int8, fp8, got 'fp4'"


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_gpu_providers_say_what_is_missing(name: str) -> None:
    import onnxruntime as ort

    backend = BACKENDS[name]
    assert isinstance(backend, OnnxRuntimeBackend)
    if backend._provider in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has {backend._provider}")
    with pytest.raises(BackendError) as caught:
        select(name)
    assert str(caught.value) == (
        f"{name} needs ONNX Runtime's {backend._provider}, got {', '.join(ort.get_available_providers())}; "
        "install onnxruntime-gpu in place of onnxruntime"
    )


def test_a_provider_that_onnxruntime_drops_silently_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers: real(path, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(BackendError, match="expected CUDAExecutionProvider, got CPUExecutionProvider when"):
        BACKENDS["onnxruntime-cuda"].open(bundle / "clip.onnx", "fp32", content="a" * 64)


def test_importing_loads_no_library_that_takes_time() -> None:
    code = (
        "import sys, json, ldp_runtime.backends, ldp_runtime.deblurrer, ldp_runtime.bundle.bundle;"
        "print(json.dumps(sorted({'openvino', 'onnxruntime', 'cv2', 'onnx', 'torch'} & set(sys.modules))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_the_package_gives_its_main_class_on_demand() -> None:
    code = "import sys, ldp_runtime; assert 'numpy' not in sys.modules; print(ldp_runtime.Deblurrer.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "Deblurrer"


def test_tensor_spec_fits() -> None:
    spec = TensorSpec("x", ("B", 3, "W"), np.dtype(np.float32))
    assert spec.fits(np.zeros((5, 3, 7), np.float32))
    assert not spec.fits(np.zeros((5, 4, 7), np.float32))
    assert not spec.fits(np.zeros((5, 3), np.float32))
    assert not spec.fits(np.zeros((5, 3, 7), ">f4"))
    assert str(spec) == "x (B, 3, W) float32"


def test_an_exception_becomes_one_line() -> None:
    assert one_line(RuntimeError("a\n  b\tc")) == "a b c"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 1000))) == 300


def test_backend_of_its_own_class() -> None:
    assert isinstance(BACKENDS["openvino"], OpenVinoBackend)
    assert all(name == backend.name for name, backend in BACKENDS.items())


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are looked at on Linux alone")
def test_openvino_leaves_the_signal_stack_alone(bundle: Path) -> None:
    """The plugin's own would stay behind and be gone with the model; Ctrl-C on it would be a crash."""
    program = f"""
import ctypes
from pathlib import Path
import numpy as np
from ldp_runtime.registry import BACKENDS

def stack():
    words = (ctypes.c_size_t * 3)()
    assert ctypes.CDLL(None).sigaltstack(None, words) == 0
    return tuple(words)

before = stack()
backend = BACKENDS["openvino"]
backend.available()
assert stack() == before, "loaded"
session = backend.open(Path({str(bundle / "deblur.onnx")!r}), "fp32", threads=1)
assert stack() == before, "opened"
session.run({{
    "pair": np.zeros((1, 6, 64, 96), np.float32),
    "blur_logits": np.zeros((1, 1, {64 // PATCH}, {96 // PATCH}), np.float32),
}})
assert stack() == before, "ran"
del session
assert stack() == before, "dropped"
"""
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_image_files_need_no_backend() -> None:
    code = "import sys, ldp_runtime.images.photo; print([name for name in sys.modules if 'backends' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
