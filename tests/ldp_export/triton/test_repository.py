from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

from ldp_export.cli import main
from ldp_export.commands.triton import VARIANT_NAMES
from ldp_export.triton.config_text import Word, to_text
from ldp_export.triton.repository import MARKER, write_repository
from ldp_export.triton.serving import MODELS, VARIANTS, Serving, TritonError
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ShapeRange, clip_shapes, deblur_shapes
from ldp_runtime.bundle.trust import trust
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, ImageError, LDPError, NumericsError
from ldp_runtime.host import HostChain
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.tiles import TileError
from ldp_runtime.triton import ServedGraph, ServedGraphs, TritonPythonModel, make_deblurrer, restore
from tests.ldp_runtime.tiny_bundle import PATCH, WINDOW, add_engine, make_tiny_bundle
from tests.processes import output

SCHEMA = Path(__file__).with_name("triton_model_config.json")
VERSION = "10.16.1.11"


@pytest.fixture(scope="module")
def config_class() -> Any:
    """The message class of Triton's published schema of a model's config."""
    file = json_format.ParseDict(
        json.loads(SCHEMA.read_text(encoding="utf-8"))["descriptor"], descriptor_pb2.FileDescriptorProto()
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read_config(model: Path, config_class: Any) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), config_class())


def views(seed: int = 0, *, h: int = 40, w: int = 56, dtype: str = "uint8") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, np.iinfo(dtype).max, (2, h, w, 3), dtype=dtype)
    return left, right


def with_engines(folder: Path, *, archs: tuple[str, ...] = ("sm_80", "sm_89"), **changes: Any) -> Bundle:
    """The tiny bundle with files that pass for engines of the enterprise TensorRT."""
    bundle = Bundle.load(make_tiny_bundle(folder))
    shapes = {
        "clip": [clip_shapes(batch, WINDOW) for batch in (1, 8, 24)],
        "deblur": [deblur_shapes(*size, PATCH) for size in ((32, 32), (256, 256), (1024, 1536))],
    }
    for kind, (low, opt, high) in shapes.items():
        profile = {name: ShapeRange(low[name], opt[name], high[name]) for name in low}
        for arch in archs:
            parts = {"kind": kind, "flavour": "tensorrt", "version": VERSION, "targets": (arch,), **changes}
            add_engine(bundle.path, f"{kind} {arch}".encode(), **parts, profile=profile)
    return Bundle.load(bundle.path)


# --- configs ------------------------------------------------------------------------------------------------------


def test_the_command_knows_the_variants() -> None:
    assert tuple(VARIANTS) == VARIANT_NAMES


def test_python_variant(bundle: Bundle, tmp_path: Path, config_class: Any) -> None:
    serving = Serving(bits=(8, 16), instances=3, max_batch=5, max_delay=700, max_queue=9, threads=2, tile=512)
    assert write_repository(bundle, tmp_path / "repository", serving) == ["ldp", "ldp_uint16"]
    for name, dtype in (("ldp", "TYPE_UINT8"), ("ldp_uint16", "TYPE_UINT16")):
        config = read_config(tmp_path / "repository" / name, config_class)
        assert (config.name, config.backend, config.max_batch_size) == (name, "python", 5)
        kinds = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
        tensors = [(t.name, kinds[t.data_type].name, [*t.dims]) for t in (*config.input, *config.output)]
        assert tensors == [
            ("LEFT", dtype, [-1, -1, 3]),
            ("RIGHT", dtype, [-1, -1, 3]),
            ("RESTORED", dtype, [-1, -1, 3]),
            ("BLUR_MAP", "TYPE_FP32", [-1, -1]),
        ]
        assert all(tensor.allow_ragged_batch for tensor in config.input)
        assert config.dynamic_batching.max_queue_delay_microseconds == 700
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
        assert [group.count for group in config.instance_group] == [3]
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        expected = {"backend": "auto", "precision": "auto", "threads": "2", "tile": "512", "warm_up": "[256, 256]"}
        assert parameters == expected
        assert Bundle.load(tmp_path / "repository" / name / "1" / "bundle").content == bundle.content


@pytest.mark.parametrize("openvino", [False, True])
def test_onnxruntime_variant(bundle: Bundle, tmp_path: Path, config_class: Any, openvino: bool) -> None:
    folder = tmp_path / "repository"
    serving = Serving(variant="onnxruntime", precision="fp16", openvino=openvino, warm_up=(60, 70))
    assert write_repository(bundle, folder, serving) == ["ldp", "ldp_clip", "ldp_deblur"]
    assert "warm_up" not in read_config(folder / "ldp", config_class).parameters  # the others may not be there yet
    clip, deblur = (read_config(folder / name, config_class) for name in ("ldp_clip", "ldp_deblur"))
    assert (clip.max_batch_size, deblur.max_batch_size) == (64, 0)
    assert clip.HasField("dynamic_batching")
    assert not deblur.HasField("dynamic_batching")
    for kind, config in (("clip", clip), ("deblur", deblur)):
        assert (config.backend, config.platform) == ("onnxruntime", "")
        accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
        assert [accelerator.name for accelerator in accelerators] == (["openvino"] if openvino else [])
        file = folder / f"ldp_{kind}" / "1" / config.default_model_filename
        assert file.read_bytes() == bundle.graph(kind, "fp16").read_bytes()
        check_against_graph(config, file)
    warm_up = {key: [*value.dims] for key, value in deblur.model_warmup[0].inputs.items()}
    assert warm_up == {"pair": [1, 6, 64, 96], "blur_logits": [1, 1, 4, 6]}


def check_against_graph(config: Any, file: Path) -> None:
    """Names, types and shapes of a config are those of its graph."""
    session = BACKENDS["onnxruntime"].open(file, "fp16", 1)
    kinds = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    batch = [-1] if config.max_batch_size else []
    for tensors, specs in ((config.input, session.inputs), (config.output, session.outputs)):
        have = [(t.name, kinds[t.data_type].name, [*batch, *t.dims]) for t in tensors]
        types_ = {"float16": "TYPE_FP16", "float32": "TYPE_FP32"}
        assert have == [
            (s.name, types_[s.dtype.name], [size if isinstance(size, int) else -1 for size in s.shape]) for s in specs
        ]


def test_tensorrt_variant(tmp_path: Path, config_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    bundle = with_engines(tmp_path)
    serving = Serving(variant="tensorrt")
    with pytest.raises(TritonError, match="ldp trust"):
        write_repository(bundle, tmp_path / "repository", serving)
    trust([entry.sha256 for entry in bundle.manifest.engines], "a test")
    folder = tmp_path / "repository"
    assert write_repository(bundle, folder, serving) == ["ldp", "ldp_clip", "ldp_deblur"]
    config = read_config(folder / "ldp", config_class)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"precision": "fp16", "tile": "1024"}
    for kind, batch in (("clip", 24), ("deblur", 0)):
        config = read_config(folder / f"ldp_{kind}", config_class)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", batch)
        assert dict(config.cc_model_filenames) == {"8.0": f"{kind}.sm_80.plan", "8.9": f"{kind}.sm_89.plan"}
        for arch in ("sm_80", "sm_89"):
            assert (folder / f"ldp_{kind}" / "1" / f"{kind}.{arch}.plan").read_text(
                encoding="utf-8"
            ) == f"{kind} {arch}"
        assert (folder / f"ldp_{kind}" / "1" / config.default_model_filename).is_file()
        check_against_graph(config, bundle.graph(kind, "fp16"))


def test_tensorrt_wants_engines_of_its_own(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    serving = Serving(variant="tensorrt")
    with pytest.raises(TritonError, match=r"got none; build engines .* --flavour tensorrt"):
        write_repository(bundle, tmp_path / "repository", serving)
    with pytest.raises(TritonError, match="TensorRT-RTX"):
        write_repository(with_engines(tmp_path / "rtx", flavour="rtx"), tmp_path / "repository", serving)
    damaged = with_engines(tmp_path / "damaged")
    trust([entry.sha256 for entry in damaged.manifest.engines], "a test")
    (damaged.path / damaged.manifest.engines[0].file).write_bytes(b"other")
    with pytest.raises(BundleError, match="expected an engine of"):
        write_repository(damaged, tmp_path / "repository", serving)
    with pytest.raises(TritonError, match="at most 1024 px"):
        engines = with_engines(tmp_path / "fine")
        write_repository(engines, tmp_path / "repository", dataclasses.replace(serving, tile="off"))
    assert not (tmp_path / "repository").exists()


def test_the_schema_refuses_what_it_does_not_know(config_class: Any) -> None:
    text_format.Parse(to_text({"name": 'a "quoted"\nname'}), config_class())
    for wrong in ({"max_batch": 1}, {"instance_group": [{"kind": Word("KIND_TPU")}]}, {"name": 3}):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(to_text(wrong), config_class())


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_command_replaces_its_own_repository_and_nothing_else(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "repository"
    command = ["triton", str(bundle.path), "-o", str(folder)]
    assert main([*command, "--bits", "8", "16", "--variant", "onnxruntime"]) == 0
    record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    assert record["models"] == ["ldp", "ldp_uint16", "ldp_clip", "ldp_deblur"]
    assert record["bundle"] == {"name": "tiny", "content": bundle.content}
    assert main(command) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["ldp", "README.md", MARKER, "client.py", "serve.py"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "`ldp`" in text
    assert "{" not in text
    (folder / MARKER).unlink()
    assert main(command) == 2
    assert MARKER in capsys.readouterr().err
    assert (folder / "ldp").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "tensorflow"}, "expected a variant, one of python, onnxruntime, tensorrt"),
        ({"bits": (10,)}, "expected bits, of 8, 16"),
        ({"instances": 0}, "instances of at least 1"),
        ({"max_queue": 0}, "requests that may wait of at least 1"),
        ({"warm_up": (0, 5)}, "warm-up in px of at least 1"),
        ({"variant": "onnxruntime", "threads": 2}, "with the variant python alone"),
        ({"openvino": True}, "OpenVINO with the variant onnxruntime"),
        ({"variant": "onnxruntime", "precision": "bf16"}, "choose fp32"),
        ({"variant": "tensorrt", "precision": "fp32"}, "expected fp16"),
    ],
)
def test_options_that_do_not_fit(bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TritonError, match=message):
        write_repository(bundle, tmp_path / "repository", Serving(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_bundle_lacks(bundle: Bundle, tmp_path: Path) -> None:
    for variant in ("python", "onnxruntime"):
        with pytest.raises(BundleError, match=r"expected a.* int8"):
            write_repository(bundle, tmp_path / "repository", Serving(variant=variant, precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_tile_or_a_full_disk_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TileError):
        write_repository(bundle, tmp_path / "repository", Serving(tile=3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(TritonError, match="No space left"):
        write_repository(bundle, tmp_path / "repository", Serving())
    assert list(tmp_path.iterdir()) == []


def test_writing_a_repository_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    code = "import sys; from ldp_export.cli import main; sys.exit(main(sys.argv[1:]))"
    output(code, "triton", str(bundle.path), "-o", str(tmp_path / "repository"), blocked=["torch"])


# --- the model, in a stand-in of the backend's module --------------------------------------------------------------


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


def open_model(model: Path, config_class: Any) -> TritonPythonModel:
    config = json_format.MessageToDict(read_config(model, config_class), preserving_proto_field_name=True)
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
def model(bundle: Bundle, tmp_path: Path, config_class: Any, backend_utils: types.SimpleNamespace) -> TritonPythonModel:
    write_repository(bundle, tmp_path / "repository", Serving(backend="onnxruntime", threads=1))
    return open_model(tmp_path / "repository" / "ldp", config_class)


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
def test_a_network_without_a_blur_map(
    variant: str, tmp_path: Path, config_class: Any, backend_utils: types.SimpleNamespace
) -> None:
    bundle = Bundle.load(make_tiny_bundle(tmp_path, clip=False))
    names = write_repository(bundle, tmp_path / "repository", Serving(variant=variant))
    assert names == (["ldp"] if variant == "python" else ["ldp", "ldp_deblur"])
    folder = tmp_path / "repository" / "ldp"
    assert [output.name for output in read_config(folder, config_class).output] == ["RESTORED"]
    assert "BLUR_MAP" not in (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")
    if variant == "python":
        left, right = views()
        (answer,) = open_model(folder, config_class).execute([Request(left[None], right[None], wanted=("RESTORED",))])
        np.testing.assert_array_equal(answer.tensors["RESTORED"][0], Deblurrer(bundle)(left, right).restored)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_model_is_warm_before_it_counts_as_ready(
    bundle: Bundle,
    tmp_path: Path,
    config_class: Any,
    backend_utils: types.SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Deblurrer, "warm_up", lambda self, sizes, dtype: calls.append((sizes, np.dtype(dtype))))
    (name,) = write_repository(bundle, tmp_path / "repository", Serving(bits=(bits,), warm_up=(60, 70)))
    open_model(tmp_path / "repository" / name, config_class)
    assert calls == [([(60, 70)], np.dtype(f"uint{bits}"))]
    config = tmp_path / "repository" / name / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("[60, 70]", "60x70"))
    with pytest.raises(Exception, match=r"the parameter warm_up as \[height, width\], got '60x70'"):
        open_model(tmp_path / "repository" / name, config_class)


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
    bundle: Bundle, tmp_path: Path, config_class: Any, backend_utils: types.SimpleNamespace, dtype: str
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
            config = read_config(folder / name, config_class)
            assert config.max_batch_size == 0 or len(next(iter(feeds.values()))) <= config.max_batch_size
            outputs = sessions[name].run(feeds)
            wanted = self.fields["requested_output_names"]
            return backend_utils.InferenceResponse([Tensor(output, outputs[output]) for output in wanted])

    backend_utils.InferenceRequest = InferenceRequest
    model = open_model(folder / MODELS[bits], config_class)
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
    bundle: Bundle, tmp_path: Path, config_class: Any, backend_utils: types.SimpleNamespace
) -> None:
    write_repository(bundle, tmp_path / "repository", Serving())
    folder = tmp_path / "repository" / "ldp" / "1"
    with pytest.raises(BackendError, match="threads as a number, got 'many'"):
        make_deblurrer(folder, {"threads": "many"})
    with pytest.raises(TileError):
        make_deblurrer(folder, {"tile": "some"})
    (folder / "bundle" / "deblur.onnx").write_bytes(b"")
    with pytest.raises(backend_utils.TritonModelException, match=r"expected .* bytes, got 0"):
        open_model(tmp_path / "repository" / "ldp", config_class)
