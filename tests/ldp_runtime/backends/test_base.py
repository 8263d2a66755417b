from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from ldp_runtime.backends.base import PRECISIONS, graph_precision
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS
from tests.ldp_runtime.backends.graphs import clip_feeds, deblur_feeds, open_graph
from tests.ldp_runtime.tiny_bundle import WINDOW

CPU_BACKENDS = ("openvino", "onnxruntime")
HAS_FP16 = "FP16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
    spec = f"center ({free}, 3, 64, 64) float32"
    center, stereo = feeds["center"], f"input stereo ({free}, 3, 64, 128) float32"
    for wrong, expected, got in (
        ({}, "inputs stereo, center", "none"),
        ({"stereo": feeds["stereo"]}, "inputs stereo, center", "stereo"),
        (feeds | {"more": center}, "inputs stereo, center", "stereo, center, more"),
        (feeds | {"center": center.astype(float)}, f"input {spec}", "center (2, 3, 64, 64) float64"),
        (feeds | {"center": center[0]}, f"input {spec}", "center (3, 64, 64) float32"),
        (feeds | {"stereo": center}, stereo, "stereo (2, 3, 64, 64) float32"),
    ):
        with pytest.raises(BackendError) as caught:
            session.run(wrong)
        assert str(caught.value) == f"expected the {expected}, got {got}"


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
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    for _ in range(2):  # the second time from the cache
        session = BACKENDS[name].open(tmp_path / "g.onnx", "fp32", content="content")
        assert [spec.name for spec in session.inputs + session.outputs] == ["pair", "restored"]
        outputs = session.run({"pair": np.array([[-1.0, 2.0]], np.float32)})
        assert {key: array.tolist() for key, array in outputs.items()} == {"restored": [[0.0, 2.0]]}


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
        backend.open(bundle / "clip.onnx", "fp4")
    assert str(caught.value) == (
        f"expected a precision of {name} on this machine ({', '.join(backend.precisions)}), got 'fp4'; "
        "choose one of these or auto"
    )
    with pytest.raises(BackendError, match="expected at least 1 thread, got 0; leave it out"):
        backend.open(bundle / "clip.onnx", "fp32", 0)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_precisions_and_description(name: str) -> None:
    backend = BACKENDS[name]
    backend.available()
    assert set(backend.precisions) <= set(PRECISIONS)
    assert backend.resolve("auto") == backend.precisions[0]
    assert backend.resolve("auto", bf16=False) == "fp32"
    assert {"fp32", "fp16"} <= set(backend.precisions)
    assert backend.describe().lower().replace(" ", "").startswith(name)


def test_graph_of_each_precision() -> None:
    assert [graph_precision(precision) for precision in PRECISIONS] == ["fp32", "fp32", "fp16", "int8"]
