"""The model of Triton's Python backend, in a stand-in of the backend's module."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from ldp_export.triton.repository import write_repository
from ldp_export.triton.serving import MODELS, Serving
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, ImageError, LDPError, NumericsError
from ldp_runtime.host import HostChain
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.tiles import TileError
from ldp_runtime.triton import ServedGraph, ServedGraphs, TritonPythonModel, make_deblurrer, restore
from tests.ldp_export.triton.schema import read_config
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(pristine: Path) -> Bundle:
    """The tiny bundle; no test changes it."""
    return Bundle.load(pristine)


def views(seed: int = 0, *, h: int = 40, w: int = 56, dtype: str = "uint8") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, np.iinfo(dtype).max, (2, h, w, 3), dtype=dtype)
    return left, right


class Tensor:
    """A tensor of the stand-in: what DLPack needs and its name."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        return cls(name, np.from_dlpack(array))

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Request:
    """A request of the stand-in."""

    def __init__(
        self,
        left: np.ndarray,
        right: np.ndarray,
        *,
        wanted: tuple[str, ...] = ("RESTORED", "BLUR_MAP"),
        parameters: str = "",
    ) -> None:
        self.tensors = {"LEFT": Tensor("LEFT", left), "RIGHT": Tensor("RIGHT", right)}
        self.wanted, self._parameters = wanted, parameters

    def requested_output_names(self) -> list[str]:
        return [*self.wanted]

    def parameters(self) -> str:
        return self._parameters


@pytest.fixture
def backend_utils(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """What the model uses of ``triton_python_backend_utils``."""

    class Error:
        INTERNAL, INVALID_ARG = "internal", "invalid"

        def __init__(self, message: str, code: str) -> None:
            self.text, self.code = message, code

        def message(self) -> str:
            return self.text

    class Response:
        def __init__(self, output_tensors: list[Tensor] | None = None, error: Error | None = None) -> None:
            self.tensors = {tensor.name(): np.from_dlpack(tensor) for tensor in output_tensors or ()}
            self._output_tensors, self._error = output_tensors or [], error

        def has_error(self) -> bool:
            return self._error is not None

        def error(self) -> Error | None:
            return self._error

        def output_tensors(self) -> list[Tensor]:
            return self._output_tensors

    logged: list[str] = []
    utils = types.SimpleNamespace(
        InferenceResponse=Response,
        Logger=types.SimpleNamespace(log_info=logged.append, log_warn=logged.append),
        PreferredMemory=lambda kind: kind,
        TRITONSERVER_MEMORY_CPU="cpu",
        Tensor=Tensor,
        TritonError=Error,
        TritonModelException=type("TritonModelException", (Exception,), {}),
        get_input_tensor_by_name=lambda request, name: request.tensors[name],
        logged=logged,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)  # type: ignore[arg-type]
    return utils


def open_model(model: Path) -> TritonPythonModel:
    config = json_format.MessageToDict(read_config(model), preserving_proto_field_name=True)
    served = TritonPythonModel()
    served.initialize(
        {
            "model_name": model.name,
            "model_repository": str(model),
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )
    return served


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path, backend_utils: types.SimpleNamespace) -> TritonPythonModel:
    write_repository(bundle, tmp_path / "repository", Serving(backend="onnxruntime", threads=1))
    return open_model(tmp_path / "repository" / "ldp")


def test_a_batch_of_requests(model: TritonPythonModel, bundle: Bundle) -> None:
    """Sizes and axes differ, one request has two pairs, and the wrong ones are told by themselves."""
    deblurrer = Deblurrer(bundle, backend="onnxruntime", threads=1)
    pairs = [views(seed) for seed in range(2)]
    double = Request(*(np.stack([pair[side] for pair in pairs]) for side in range(2)))
    turned = views(3, h=33, w=70)
    wrong = views(4)
    requests = [
        double,
        Request(wrong[0][None], wrong[1][None, :, :20]),
        Request(turned[0][None], turned[1][None], parameters='{"axis": "vertical"}', wanted=("RESTORED",)),
        Request(wrong[0][None], wrong[1][None], parameters='{"axis": "diagonal"}'),
        Request(wrong[0][None], wrong[0][None]),
        Request(wrong[0][None], wrong[0][None], parameters='{"check": "auto"}'),
        Request(wrong[0][None], wrong[0][None], parameters='{"check": "perhaps"}'),
    ]
    first, second, third, fourth, fifth, sixth, seventh = model.execute(requests)
    for i, pair in enumerate(pairs):
        expected = deblurrer(*pair)
        np.testing.assert_array_equal(first.tensors["RESTORED"][i], expected.restored)
        np.testing.assert_array_equal(first.tensors["BLUR_MAP"][i], expected.blur_map)
    assert second.error().code == "invalid"
    assert second.error().text.startswith("expected two views of one size, got left 56 x 40 px")
    assert third.tensors.keys() == {"RESTORED"}
    expected = deblurrer(*turned, axis="vertical")
    np.testing.assert_array_equal(third.tensors["RESTORED"][0], expected.restored)
    assert np.any(expected.restored != deblurrer(*turned).restored)
    assert "expected an axis, one of horizontal, vertical" in fourth.error().text
    assert not fifth.has_error(), "the model was written without a check"
    assert "hold the same picture" in sixth.error().text and sixth.error().code == "invalid"
    assert "expected check as one of auto, warn, off, got 'perhaps'" in seventh.error().text


@pytest.mark.parametrize("variant", ["python", "onnxruntime"])
def test_a_network_without_a_blur_map(variant: str, tmp_path: Path, backend_utils: types.SimpleNamespace) -> None:
    bundle = Bundle.load(make_tiny_bundle(tmp_path, clip=False))
    names = write_repository(bundle, tmp_path / "repository", Serving(variant=variant))
    assert names == (["ldp"] if variant == "python" else ["ldp", "ldp_deblur"])
    folder = tmp_path / "repository" / "ldp"
    assert [output.name for output in read_config(folder).output] == ["RESTORED"]
    assert "BLUR_MAP" not in (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")
    if variant == "python":
        left, right = views()
        (answer,) = open_model(folder).execute([Request(left[None], right[None], wanted=("RESTORED",))])
        np.testing.assert_array_equal(answer.tensors["RESTORED"][0], Deblurrer(bundle)(left, right).restored)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_model_is_warm_before_it_counts_as_ready(
    bundle: Bundle,
    tmp_path: Path,
    backend_utils: types.SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Deblurrer, "warm_up", lambda self, sizes, dtype: calls.append((sizes, np.dtype(dtype))))
    (name,) = write_repository(bundle, tmp_path / "repository", Serving(bits=(bits,), warm_up=(60, 70)))
    open_model(tmp_path / "repository" / name)
    assert calls == [([(60, 70)], np.dtype(f"uint{bits}"))]
    config = tmp_path / "repository" / name / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("[60, 70]", "60x70"))
    with pytest.raises(Exception, match=r"the parameter warm_up as \[height, width\], got '60x70'"):
        open_model(tmp_path / "repository" / name)


def test_nan_is_an_error_of_the_server(model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(*_: object, **__: object) -> None:
        raise NumericsError("expected finite numbers, got NaN")

    monkeypatch.setattr(HostChain, "_run", nan)
    left, right = views()
    (answer,) = model.execute([Request(left[None], right[None])])
    assert (answer.error().code, answer.error().text) == ("internal", "expected finite numbers, got NaN")


def test_an_error_in_the_middle_leaves_the_others_alone(bundle: Bundle) -> None:
    deblurrer = Deblurrer(bundle, backend="onnxruntime", threads=1)
    good, other, wrong = views(1), views(2), (views(3)[0], views(3, h=16)[1])
    outcomes = restore(deblurrer, [(*pair, "horizontal", None) for pair in (good, wrong, other, wrong)])
    assert [isinstance(outcome, LDPError) for outcome in outcomes] == [False, True, False, True]
    assert isinstance(outcomes[1], ImageError)
    for outcome, pair in ((outcomes[0], good), (outcomes[2], other)):
        assert not isinstance(outcome, LDPError)
        np.testing.assert_array_equal(outcome.restored, deblurrer(*pair).restored)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_graphs_as_models_of_the_server(
    bundle: Bundle, tmp_path: Path, backend_utils: types.SimpleNamespace, dtype: str
) -> None:
    """The other variants: the model asks others, which stand in for the ONNX Runtime backend here."""
    folder = tmp_path / "repository"
    bits = np.iinfo(dtype).bits
    write_repository(bundle, folder, Serving(variant="onnxruntime", bits=(bits,), tile=256))
    sessions = {
        f"ldp_{kind}": BACKENDS["onnxruntime"].open(bundle.graph(kind), "fp32", 1) for kind in ("clip", "deblur")
    }
    asked: list[str] = []

    class InferenceRequest:
        def __init__(self, **fields: Any) -> None:
            self.fields = fields

        def exec(self) -> Any:
            name = self.fields["model_name"]
            asked.append(name)
            assert self.fields["preferred_memory"] == "cpu"
            feeds = {tensor.name(): np.from_dlpack(tensor) for tensor in self.fields["inputs"]}
            config = read_config(folder / name)
            assert config.max_batch_size == 0 or len(next(iter(feeds.values()))) <= config.max_batch_size
            outputs = sessions[name].run(feeds)
            wanted = self.fields["requested_output_names"]
            return backend_utils.InferenceResponse([Tensor(output, outputs[output]) for output in wanted])

    backend_utils.InferenceRequest = InferenceRequest
    model = open_model(folder / MODELS[bits])
    assert backend_utils.logged == [f"{MODELS[bits]}: triton in fp32, as asked"]
    left, right = views(5, h=150, w=420, dtype=dtype)  # tiles, and more windows than go at a time
    (answer,) = model.execute([Request(left[None], right[None])])
    expected = Deblurrer(bundle, backend="onnxruntime", threads=1, tile=256)(left, right)
    assert expected.tiles > 1
    np.testing.assert_array_equal(answer.tensors["RESTORED"][0], expected.restored)
    np.testing.assert_array_equal(answer.tensors["BLUR_MAP"][0], expected.blur_map)
    assert set(asked) == {"ldp_clip", "ldp_deblur"}

    def refuse(self: Any) -> Any:
        return backend_utils.InferenceResponse(error=backend_utils.TritonError("no\nmemory", "internal"))

    monkeyed = InferenceRequest.exec
    InferenceRequest.exec = refuse  # type: ignore[method-assign]
    (answer,) = model.execute([Request(left[None], right[None])])
    assert answer.error().text == "model ldp_clip failed: no memory"
    InferenceRequest.exec = monkeyed  # type: ignore[method-assign]
    assert not model.execute([Request(left[None], right[None])])[0].has_error()


def test_a_served_graph_survives_json(bundle: Bundle) -> None:
    session = BACKENDS["onnxruntime"].open(bundle.graph("clip", "fp16"), "fp16", 1)
    graph = ServedGraph("ldp_clip", session.inputs, session.outputs)
    assert ServedGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    backend = ServedGraphs({bundle.graph("clip", "fp16"): graph}, "fp16")
    assert backend.precisions == ("fp16",)
    assert "ldp_clip" in backend.describe()


def test_a_damaged_repository_or_a_wrong_parameter_is_one_line(
    bundle: Bundle, tmp_path: Path, backend_utils: types.SimpleNamespace
) -> None:
    write_repository(bundle, tmp_path / "repository", Serving())
    folder = tmp_path / "repository" / "ldp" / "1"
    with pytest.raises(BackendError, match="threads as a number, got 'many'"):
        make_deblurrer(folder, {"threads": "many"})
    with pytest.raises(TileError):
        make_deblurrer(folder, {"tile": "some"})
    (folder / "bundle" / "deblur.onnx").write_bytes(b"")
    with pytest.raises(backend_utils.TritonModelException, match=r"expected .* bytes, got 0"):
        open_model(tmp_path / "repository" / "ldp")
