import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from ldp_runtime import threads
from ldp_runtime.backends.base import Session, SessionBackend
from ldp_runtime.backends.openvino import OpenVinoBackend
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, ImageError, NumericsError
from ldp_runtime.host import HostChain
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import select_prompts
from tests.ldp_runtime.helpers import a_pair, assert_same, session_of
from tests.ldp_runtime.tiny_bundle import (
    MEAN,
    OVERLAP,
    PADDING_MULTIPLE,
    PATCH,
    STD,
    WINDOW,
    deblur_graph,
    make_tiny_bundle,
    rewrite,
)


def transcribed(folder: Path, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Restored image in [0, 1] without the last rounding, and blur logits, in float64 but for the graphs."""
    bundle = Bundle.load(folder)
    top = float(np.iinfo(left.dtype).max)

    def pad(image: np.ndarray, multiple: int, least: int) -> np.ndarray:
        for axis in (0, 1):
            n = image.shape[axis]
            size = max(-(-n // multiple) * multiple, least)
            width = [(0, 0)] * 3
            width[axis] = (0, size - n)
            image = np.pad(image, width, mode="reflect" if n > 1 else "edge")
        return image

    L, R = (pad(view / top, PADDING_MULTIPLE, 0) for view in (left, right))
    H, W = L.shape[:2]
    l_clip, r_clip = pad(L, 1, WINDOW), pad(R, 1, WINDOW)
    mean, std = np.array(MEAN), np.array(STD)
    graph = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "clip.onnx").graph.initializer}
    weight, bias = (value.astype(float) for value in graph.values())

    def encode(canvas: np.ndarray) -> np.ndarray:  # (y, x, 3) to (y / p, x / p, c)
        x = (canvas - mean) / std
        x = x.reshape(x.shape[0] // PATCH, PATCH, x.shape[1] // PATCH, PATCH, 3)
        return np.einsum("iyjxc,ocyx->ijo", x, weight) + bias

    def origins(side: int) -> list[int]:
        grid, g, shared = side // PATCH, WINDOW // PATCH, OVERLAP // PATCH
        count = math.ceil((grid - shared) / (g - shared))
        return [PATCH * math.floor(i * (grid - g) / max(count - 1, 1)) for i in range(count)]

    g = WINDOW // PATCH
    total = np.zeros((l_clip.shape[0] // PATCH, l_clip.shape[1] // PATCH))
    weights = np.zeros_like(total)
    for y0 in origins(l_clip.shape[0]):
        for x0 in origins(l_clip.shape[1]):
            l_region = l_clip[y0 : y0 + WINDOW, x0 : x0 + WINDOW]
            r_region = r_clip[y0 : y0 + WINDOW, x0 : x0 + WINDOW]
            stereo = encode(np.concatenate([l_region, r_region[:, ::-1]], axis=1))
            center = encode((l_region + r_region) / 2)
            for i, j in np.ndindex(g, g):
                blurred = []
                for k in select_prompts(bundle.manifest.prompts, bundle.manifest.ensemble):
                    prompt, t = bundle.manifest.prompts[k], bundle.text_embeddings[k]
                    dp = prompt.format == "dp-aware"
                    f = (stereo[i, j] + stereo[i, 2 * g - 1 - j]) / 2 if dp else center[i, j]
                    cosine = f @ t / np.linalg.norm(f) / np.linalg.norm(t)
                    m = 1 / (1 + math.exp(-(100 * cosine - prompt.offset) / prompt.temperature))
                    blurred.append(1 - m if dp else m)
                p = sum(blurred) / len(blurred)
                weight_here = min(i + 1, g - i) * min(j + 1, g - j)
                total[y0 // PATCH + i, x0 // PATCH + j] += weight_here * math.log(p / (1 - p))
                weights[y0 // PATCH + i, x0 // PATCH + j] += weight_here
    logits = (total / weights)[: H // PATCH, : W // PATCH]
    feeds = {
        "pair": np.concatenate([L, R], axis=2).transpose(2, 0, 1)[None].astype(np.float32),
        "blur_logits": logits[None, None].astype(np.float32),
    }
    session = ort.InferenceSession(folder / "deblur.onnx", providers=["CPUExecutionProvider"])
    restored = session.run(["restored"], feeds)[0][0].transpose(1, 2, 0)
    return restored[: left.shape[0], : left.shape[1]], logits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(64, 64), (33, 33), (50, 100), (100, 210), (1, 1), (1, 70), (70, 1), (2, 3)])
def test_pipeline_is_the_design(exact: Deblurrer, bundle: Path, size: tuple[int, int], dtype: type) -> None:
    left, right = a_pair(*size, dtype)
    result = exact(left, right)
    restored, logits = transcribed(bundle, left, right)
    assert isinstance(result, Result)
    assert result.restored.shape == left.shape
    assert result.restored.dtype == dtype
    np.testing.assert_allclose(result.blur_logits, logits, atol=1e-4)
    top = np.iinfo(dtype).max
    expected = np.clip(restored.astype(float), 0, 1) * top
    assert np.abs(result.restored - expected).max() <= 0.5 + (0.2 if dtype == np.uint16 else 1e-3)
    assert result.blur_map.shape == left.shape[:2]
    assert result.blur_map.dtype == np.float32
    center = (left.astype(float) + right) / 2
    assert np.abs(result.restored - center).max() > 0.004 * top, "the network does nothing here"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_when_the_network_adds_nothing(spoilt: Path, dtype: type) -> None:
    onnx.save(deblur_graph(np.random.default_rng(0), np.dtype(np.float32), gain=0.0), spoilt / "deblur.onnx")
    rewrite(spoilt)
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    image = np.resize(values, (-(-values.size // 250), 250, 3))
    deblurrer = Deblurrer.from_bundle(spoilt, threads=1)
    np.testing.assert_array_equal(deblurrer(image, image).restored, image)


@pytest.mark.parametrize(("ensemble", "canvas"), [("dp-aware", "stereo"), ("blur-aware", "center"), (5, "stereo")])
def test_clip_sees_what_the_prompts_query_alone(tmp_path: Path, ensemble: str | int, canvas: str) -> None:
    path = make_tiny_bundle(tmp_path, ensemble=ensemble)
    deblurrer, pair = Deblurrer.from_bundle(path, backend="onnxruntime", precision="fp32", threads=1), a_pair(50, 100)
    result = deblurrer.blur_map(*pair)
    assert [spec.name for spec in session_of(deblurrer, "clip").inputs] == [canvas]
    np.testing.assert_allclose(result.blur_logits, transcribed(path, *pair)[1], atol=1e-4)


def test_bf16_or_whatever_auto_takes_is_near_fp32(exact: Deblurrer, bundle: Path) -> None:
    left, right = a_pair(100, 130, np.uint16)
    auto = Deblurrer.from_bundle(bundle, threads=1)
    assert auto.backend == "openvino"
    result, expected = auto(left, right), exact(left, right)
    assert (result.backend, result.precision) == ("openvino", auto.precision)
    assert np.abs(result.restored.astype(int) - expected.restored).max() < 0.004 * 65535
    assert np.abs(result.blur_logits - expected.blur_logits).max() < 0.02


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_fp16_runs_the_fp16_graphs(bundle: Path, exact: Deblurrer, backend: str) -> None:
    left, right = a_pair(40, 70, np.uint16)
    result = Deblurrer.from_bundle(bundle, backend=backend, precision="fp16", threads=1)(left, right)
    expected = exact(left, right)
    assert result.precision == "fp16"
    error = np.abs(result.restored.astype(int) - expected.restored).max()
    assert 0 < error < 0.001 * 65535
    assert 0 < np.abs(result.blur_logits - expected.blur_logits).max() < 0.005


def test_vertical_disparity_is_the_transposed_problem(exact: Deblurrer) -> None:
    left, right = a_pair(50, 100)
    expected = exact(left, right)
    result = exact(left.transpose(1, 0, 2), right.transpose(1, 0, 2), axis="vertical")
    assert result.restored.flags.c_contiguous
    np.testing.assert_array_equal(result.restored, expected.restored.transpose(1, 0, 2))
    np.testing.assert_array_equal(result.blur_logits, expected.blur_logits.T)
    np.testing.assert_allclose(result.blur_map, expected.blur_map.T, atol=1e-6)
    only = exact.blur_map(left.transpose(1, 0, 2), right.transpose(1, 0, 2), axis="vertical")
    np.testing.assert_array_equal(only.blur_map, result.blur_map)


RGB = "give RGB: repeat a grey channel three times, drop alpha"


DEPTH = "scale it to 0..255 as uint8 or 0..65535 as uint16"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[1]], "got list; convert it with numpy.asarray"),
        (np.zeros((4, 5), np.uint8), f"got shape (4, 5); {RGB}"),
        (np.zeros((4, 5, 4), np.uint8), f"got shape (4, 5, 4); {RGB}"),
        (np.zeros((4, 5, 3), np.float32), f"got float32; {DEPTH}"),
        (np.zeros((4, 5, 3), np.int16), f"got int16; {DEPTH}"),
        (np.zeros((0, 5, 3), np.uint8), "got an empty image (0, 5, 3); give at least 1 x 1 px"),
    ],
)
def test_what_is_no_image_is_refused(exact: Deblurrer, wrong: np.ndarray, message: str) -> None:
    good = np.zeros((4, 5, 3), np.uint8)
    for name, pair in (("left", (wrong, good)), ("right", (good, wrong))):
        with pytest.raises(ImageError) as caught:
            exact(*pair)
        assert str(caught.value) == f"expected {name} as an array (h, w, 3) of uint8 or uint16, {message}"


@pytest.mark.parametrize(
    ("right", "axis", "message"),
    [
        (
            np.zeros((4, 6, 3), np.uint8),
            "horizontal",
            "two views of one size, got left 5 x 4 px and right 6 x 4 px; crop them alike or choose the two files of "
            "one photo",
        ),
        (
            np.zeros((4, 5, 3), np.uint16),
            "horizontal",
            "two views of one bit depth, got left uint8 and right uint16; convert both to the same",
        ),
        (np.zeros((4, 5, 3), np.uint8), "diagonal", "an axis, one of horizontal, vertical, got 'diagonal'"),
    ],
)
def test_unequal_views_and_other_axes_are_refused(exact: Deblurrer, right: np.ndarray, axis: str, message: str) -> None:
    for action in (exact, exact.blur_map):
        with pytest.raises(ImageError) as caught:
            action(np.zeros((4, 5, 3), np.uint8), right, axis=axis)
        assert str(caught.value) == f"expected {message}"


def test_a_sequence_is_read_only_so_far_ahead_of_who_takes_the_results(bundle: Path) -> None:
    """However fast the source: two pairs are in flight, one is read, and the queue holds no more."""
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)
    read = 0

    def source() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal read
        for seed in range(20):
            read += 1
            yield a_pair(20, 30, seed=seed)

    furthest = 0
    results = deblurrer.map(source())
    for taken in range(1, 6):
        assert_same(next(results), deblurrer(*a_pair(20, 30, seed=taken - 1)))
        furthest = max(furthest, read - taken)
    results.close()
    assert furthest <= 3
    assert read < 20


def test_blur_map_is_that_of_the_whole_and_needs_no_deblur_graph(spoilt: Path, exact: Deblurrer) -> None:
    left, right = a_pair(50, 70)
    expected = exact(left, right)
    (spoilt / "deblur.onnx").write_bytes((spoilt / "clip.onnx").read_bytes())  # cannot deblur
    rewrite(spoilt)
    deblurrer = Deblurrer.from_bundle(spoilt, backend="onnxruntime", precision="fp32", threads=1)
    result = deblurrer.blur_map(left, right)
    assert result.restored is None
    np.testing.assert_array_equal(result.blur_map, expected.blur_map)
    np.testing.assert_array_equal(result.blur_logits, expected.blur_logits)
    assert list(result.timings) == ["open", "prepare", "clip", "blur_logits", "finish"]
    with pytest.raises(BundleError) as caught:
        deblurrer(left, right)
    assert str(caught.value) == (
        f"{spoilt / 'deblur.onnx'}: expected the inputs blur_logits, pair, got center, stereo; "
        "export the bundle again with ldp-export onnx"
    )


def test_a_network_without_a_blur_map(tmp_path: Path) -> None:
    deblurrer = Deblurrer.from_bundle(make_tiny_bundle(tmp_path, clip=False), backend="onnxruntime", threads=1)
    left, right = a_pair(40, 50)
    result = deblurrer(left, right)
    assert result.restored.shape == left.shape
    assert (result.blur_map, result.blur_logits) == (None, None)
    assert list(result.timings) == ["open", "prepare", "deblur", "finish"]
    with pytest.raises(BundleError, match="has no blur map: its network reads none"):
        deblurrer.blur_map(left, right)


def refuse(self: OpenVinoBackend, path: Path, *_: object) -> None:
    if path.name.startswith("deblur"):
        raise RuntimeError("no such operation")


def test_auto_goes_on_when_openvino_refuses_a_graph(
    bundle: Path, exact: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., object] = OpenVinoBackend.open_impl
    monkeypatch.setattr(
        OpenVinoBackend, "open_impl", lambda self, path, *rest: refuse(self, path) or original(self, path, *rest)
    )
    left, right = a_pair(40, 50)
    deblurrer = Deblurrer.from_bundle(bundle, threads=1)
    assert deblurrer.backend == "openvino"
    result = deblurrer(left, right)
    assert (result.backend, result.precision) == ("onnxruntime", "fp32")
    assert_same(result, exact(left, right))
    assert f"; openvino was passed over: openvino cannot open {bundle / 'deblur.onnx'}" in deblurrer.reason
    with pytest.raises(BackendError, match=r"openvino cannot open .*: no such operation"):
        Deblurrer.from_bundle(bundle, backend="openvino", threads=1)(left, right)
    ahead = Deblurrer.from_bundle(bundle, threads=1)
    ahead.open()
    assert ahead.backend == "onnxruntime"
    ahead = Deblurrer.from_bundle(bundle, threads=1)
    ahead.open(restores=False)
    assert ahead.backend == "openvino"


def test_graphs_are_opened_ahead_side_by_side_and_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    barrier = threading.Barrier(2, timeout=60)
    original = SessionBackend.open

    def note(self: SessionBackend, path: Path, *rest: Any, **named: Any) -> Session:
        if both:
            barrier.wait()  # passes only if the other graph is opened at the same time
        opened.append(path.stem)
        return original(self, path, *rest, **named)

    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(SessionBackend, "open", note)
    pair = a_pair(40, 50)
    for both in (False, True):
        deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", threads=1)
        if not both:
            deblurrer.open(restores=False)
            assert opened == ["clip"]
        deblurrer.open()
        deblurrer(*pair)
        assert sorted(opened) == ["clip", "deblur"]
        opened.clear()


def test_a_graph_that_no_backend_opens_names_them_all(spoilt: Path) -> None:
    model = onnx.load(spoilt / "deblur.onnx")
    model.graph.node[0].input[0] = "nobody makes this"
    (spoilt / "deblur.onnx").write_bytes(model.SerializeToString())
    rewrite(spoilt)
    deblurrer = Deblurrer.from_bundle(spoilt, threads=1)
    with pytest.raises(BackendError, match=r"^no backend works here in precision auto: openvino: .*; onnxruntime: "):
        deblurrer(*a_pair(40, 50))


def test_both_orientations_of_a_smaller_scale(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1, scale="1/2")
    pair, done = a_pair(96, 120), list[float]()
    result = deblurrer(*pair, progress=done.append)
    assert result.scale == 0.5
    assert result.restored.shape == (*result.blur_map.shape, 3) == pair[0].shape
    assert done == sorted(done) and done[-1] == 1
    assert any(0 < share < 0.5 for share in done) and any(0.5 < share < 1 for share in done)

    run, calls = HostChain._run, list[int]()

    def second_fails(*arguments: Any) -> Result:
        calls.append(1)
        if len(calls) == 2:
            raise NumericsError("NaN in the turned pair")
        return run(*arguments)

    monkeypatch.setattr(HostChain, "_run", second_fails)
    with pytest.raises(NumericsError, match="turned pair"):
        deblurrer(*pair)
    calls.clear()
    assert deblurrer.blur_map(*pair).blur_map.shape == pair[0].shape[:2], "a blur map alone takes one"
    assert len(calls) == 1


def test_the_check_of_one_call(bundle: Path) -> None:
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)
    left, _ = a_pair(40, 60)
    assert deblurrer(left, left).check is None
    with pytest.raises(ImageError, match="hold the same picture"):
        deblurrer(left, left, check="auto")
    assert "hold the same picture" in deblurrer(left, left, check="warn").notes[0]
    with pytest.raises(ImageError, match="expected check as one of auto, warn, off, got 'no'"):
        deblurrer(left, left, check="no")
