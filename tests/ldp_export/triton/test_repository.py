from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from ldp_export.cli import main
from ldp_export.commands.triton import VARIANT_NAMES
from ldp_export.triton.config_text import Word, to_text
from ldp_export.triton.repository import MARKER, write_repository
from ldp_export.triton.serving import VARIANTS, Serving, TritonError
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ShapeRange, clip_shapes, deblur_shapes
from ldp_runtime.bundle.trust import trust
from ldp_runtime.errors import BundleError
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.tiles import TileError
from tests.ldp_export.triton.schema import parse_config, read_config
from tests.ldp_runtime.tiny_bundle import PATCH, WINDOW, add_engine, make_tiny_bundle
from tests.processes import output

VERSION = "10.16.1.11"


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


def test_the_command_knows_the_variants() -> None:
    assert tuple(VARIANTS) == VARIANT_NAMES


def test_python_variant(bundle: Bundle, tmp_path: Path) -> None:
    serving = Serving(bits=(8, 16), instances=3, max_batch=5, max_delay=700, max_queue=9, threads=2, tile=512)
    assert write_repository(bundle, tmp_path / "repository", serving) == ["ldp", "ldp_uint16"]
    for name, dtype in (("ldp", "TYPE_UINT8"), ("ldp_uint16", "TYPE_UINT16")):
        config = read_config(tmp_path / "repository" / name)
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
def test_onnxruntime_variant(bundle: Bundle, tmp_path: Path, openvino: bool) -> None:
    folder = tmp_path / "repository"
    serving = Serving(variant="onnxruntime", precision="fp16", openvino=openvino, warm_up=(60, 70))
    assert write_repository(bundle, folder, serving) == ["ldp", "ldp_clip", "ldp_deblur"]
    assert "warm_up" not in read_config(folder / "ldp").parameters  # the others may not be there yet
    clip, deblur = (read_config(folder / name) for name in ("ldp_clip", "ldp_deblur"))
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


def test_tensorrt_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    bundle = with_engines(tmp_path)
    serving = Serving(variant="tensorrt")
    with pytest.raises(TritonError, match="ldp trust"):
        write_repository(bundle, tmp_path / "repository", serving)
    trust([entry.sha256 for entry in bundle.manifest.engines], "a test")
    folder = tmp_path / "repository"
    assert write_repository(bundle, folder, serving) == ["ldp", "ldp_clip", "ldp_deblur"]
    config = read_config(folder / "ldp")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"precision": "fp16", "tile": "1024"}
    for kind, batch in (("clip", 24), ("deblur", 0)):
        config = read_config(folder / f"ldp_{kind}")
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


def test_the_schema_refuses_what_it_does_not_know() -> None:
    parse_config(to_text({"name": 'a "quoted"\nname'}))
    for wrong in ({"max_batch": 1}, {"instance_group": [{"kind": Word("KIND_TPU")}]}, {"name": 3}):
        with pytest.raises(text_format.ParseError):
            parse_config(to_text(wrong))


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
