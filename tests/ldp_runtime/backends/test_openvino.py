import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS
from tests.ldp_runtime.backends.graphs import clip_feeds, deblur_feeds, open_graph
from tests.ldp_runtime.tiny_bundle import PATCH, deblur_graph
from tests.processes import output

HAS_BF16 = "bf16" in BACKENDS["openvino"].precisions


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def test_a_run_that_openvino_refuses_is_a_backend_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_graph("openvino", bundle / "deblur.onnx")
    failing = Mock(**{"infer.side_effect": RuntimeError("Exception from src:1\n  shapes differ")})
    monkeypatch.setattr(session, "_request", failing)
    with pytest.raises(BackendError) as caught:
        session.run(deblur_feeds())
    assert str(caught.value) == "openvino failed: Exception from src:1 shapes differ"


def test_openvino_keeps_what_it_compiles_by_content(bundle: Path, empty_cache: Path) -> None:
    feeds = deblur_feeds()
    backend = BACKENDS["openvino"]
    plain = backend.open(bundle / "deblur.onnx", "fp32", 1).run(feeds)["restored"]
    assert not empty_cache.exists(), "without a content hash nothing is kept"
    for _ in range(2):
        session = backend.open(bundle / "deblur.onnx", "fp32", 1, content="a" * 64)
        np.testing.assert_array_equal(session.run(feeds)["restored"], plain)
        assert len(list((empty_cache / "openvino" / ("a" * 32) / "deblur-fp32").glob("*.blob"))) == 1
    backend.open(bundle / "deblur.onnx", "fp32", 1, content="b" * 64)
    assert len(list((empty_cache / "openvino").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "file"))
    BACKENDS["openvino"].open(bundle / "clip.onnx", "fp32", 1, content="a" * 64).run(clip_feeds())


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are looked at on Linux alone")
def test_openvino_leaves_the_signal_stack_alone(bundle: Path) -> None:
    """The plugin's own would stay behind and be gone with the model; Ctrl-C on it would be a crash."""
    output(f"""
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
""")
