import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ldp_runtime.bundle import bundle as bundle_module
from ldp_runtime.bundle.bundle import Bundle, read_manifest, sha256_file, write_manifest
from ldp_runtime.bundle.manifest import MANIFEST_FILE, FileEntry
from ldp_runtime.errors import BundleError
from tests.ldp_runtime.tiny_bundle import EMBED_DIM, make_engine, make_tiny_bundle, rewrite, tiny_manifest

FIX_FILES = "get the bundle again or export it again with ldp-export onnx"
FIX_MANIFEST = "export the bundle again with ldp-export onnx"


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST_FILE
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value))


def test_load_gives_typed_fields_and_embeddings(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    manifest = loaded.manifest
    assert loaded.path == bundle
    assert manifest.name == "tiny"
    assert (manifest.clip.patch, manifest.clip.window, manifest.clip.embed_dim) == (16, 64, EMBED_DIM)
    assert manifest.clip.mean == (0.48, 0.46, 0.41)
    assert [prompt.format for prompt in manifest.prompts] == ["blur-aware"] * 4 + ["dp-aware"] * 4
    assert manifest.prompts[7].temperature == -11.0
    assert manifest.padding.padded_size(33, 1) == (64, 32)
    assert loaded.text_embeddings.shape == (8, EMBED_DIM)
    assert loaded.text_embeddings.dtype == np.float32
    assert loaded.graph("deblur") == bundle / "deblur.onnx"
    assert loaded.graph("clip", "fp16") == bundle / "clip.fp16.onnx"
    assert set(manifest.files) == {
        "clip.onnx",
        "clip.fp16.onnx",
        "deblur.onnx",
        "deblur.fp16.onnx",
        "text_embeddings.npy",
    }


def test_manifest_file_has_the_schema_first_and_the_files_last(bundle: Path) -> None:
    keys = list(json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8")))
    assert keys[:3] == ["schema", "schema_version", "name"]
    assert keys[-1] == "files"


def test_content_is_equal_for_equal_content_and_changes_with_a_file(bundle: Path, pristine: Path) -> None:
    assert Bundle.load(bundle).content == Bundle.load(pristine).content
    np.save(bundle / "text_embeddings.npy", np.ones((8, EMBED_DIM), np.float32))
    rewrite(bundle)
    assert Bundle.load(bundle).content != Bundle.load(pristine).content


def test_a_bundle_without_a_clip_graph_has_no_prompts_and_no_embeddings(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path, clip=False)
    loaded = Bundle.load(path)
    manifest = loaded.manifest
    assert not manifest.reads_blur_map
    assert (manifest.clip, manifest.prompts, loaded.text_embeddings) == (None, (), None)
    assert set(manifest.files) == {"deblur.onnx", "deblur.fp16.onnx"}
    assert json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["clip"] is None


@pytest.mark.parametrize("name", ["clip.onnx", "clip.fp16.onnx", "deblur.onnx", "text_embeddings.npy"])
def test_one_flipped_bit_is_found(bundle: Path, name: str) -> None:
    entry = read_manifest(bundle).files[name]
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / name}: expected SHA-256 {entry.sha256}, got {sha256_file(bundle / name)}; {FIX_FILES}"
    )


def test_a_truncated_file_is_found(bundle: Path) -> None:
    size = (bundle / "deblur.onnx").stat().st_size
    os.truncate(bundle / "deblur.onnx", 100)
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / 'deblur.onnx'}: expected {size} bytes, got 100; {FIX_FILES}"
    )


def test_a_missing_file_is_found(bundle: Path) -> None:
    (bundle / "clip.onnx").unlink()
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / 'clip.onnx'}: expected a file of the bundle, got none; {FIX_FILES}"
    )


def test_a_link_out_of_the_bundle_is_refused_and_one_inside_is_not(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle / "deblur.onnx").rename(outside)
    (bundle / "deblur.onnx").symlink_to(outside)
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / 'deblur.onnx'}: expected a file inside the bundle, got a link to {outside.resolve()}; "
        "copy the file there"
    )
    outside.rename(bundle / "elsewhere.onnx")
    (bundle / "deblur.onnx").unlink()
    (bundle / "deblur.onnx").symlink_to("elsewhere.onnx")
    Bundle.load(bundle)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((7, EMBED_DIM), np.float32), f"(7, {EMBED_DIM}) float32"),
        (np.zeros((8, EMBED_DIM + 1), np.float32), f"(8, {EMBED_DIM + 1}) float32"),
        (np.zeros((8, EMBED_DIM)), f"(8, {EMBED_DIM}) float64"),
    ],
)
def test_embeddings_of_another_shape(bundle: Path, array: np.ndarray, got: str) -> None:
    np.save(bundle / "text_embeddings.npy", array)
    rewrite(bundle)
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / 'text_embeddings.npy'}: expected shape (8, {EMBED_DIM}) float32, got {got}; {FIX_FILES}"
    )


def test_pickled_or_broken_embeddings_are_not_loaded(bundle: Path) -> None:
    path = bundle / "text_embeddings.npy"
    for spoil in (
        lambda: path.write_bytes(pickle.dumps([{}] * 8)),
        lambda: path.write_bytes(b"no array"),
        lambda: path.write_bytes(b""),
    ):
        spoil()
        rewrite(bundle)
        message = error_of(lambda: Bundle.load(bundle))
        assert message.startswith(f"{path}: expected a plain NumPy array, got something else (")
        assert message.endswith(FIX_FILES)
    np.save(path, np.array([{}] * 8), allow_pickle=True)
    rewrite(bundle)
    assert "got something else ((8,) object)" in error_of(lambda: Bundle.load(bundle))
    np.save(path, np.full((8, EMBED_DIM), np.nan, np.float32))
    rewrite(bundle)
    assert error_of(lambda: Bundle.load(bundle)) == f"{path}: expected finite numbers, got NaN or Inf; {FIX_FILES}"


def test_a_precision_that_the_bundle_lacks(bundle: Path) -> None:
    rewrite(bundle, graphs={"clip": {"fp32": "clip.onnx"}, "deblur": {"fp32": "deblur.onnx"}})
    loaded = Bundle.load(bundle)
    assert error_of(lambda: loaded.graph("deblur", "fp16")) == (
        f"expected a fp16 deblur graph in bundle 'tiny', got fp32; choose another precision or {FIX_MANIFEST}"
    )


def with_external_data(bundle: Path, location: str = "deblur.onnx.data") -> None:
    model = onnx.load(bundle / "deblur.onnx")
    onnx.save_model(model, bundle / "deblur.onnx", save_as_external_data=True, location=location, size_threshold=0)


def test_external_data_is_listed_and_verified(bundle: Path) -> None:
    with_external_data(bundle)
    rewrite(bundle)
    assert "deblur.onnx.data" in Bundle.load(bundle).manifest.files
    os.truncate(bundle / "deblur.onnx.data", 10)
    assert f"{bundle / 'deblur.onnx.data'}: expected " in error_of(lambda: Bundle.load(bundle))


def test_external_data_that_is_not_listed_is_refused(bundle: Path) -> None:
    with_external_data(bundle)
    rewrite(bundle)
    edit(bundle, lambda value: value["files"].pop("deblur.onnx.data"))
    assert error_of(lambda: Bundle.load(bundle)) == (
        f"{bundle / MANIFEST_FILE}: expected 'deblur.onnx.data', which 'deblur.onnx' keeps weights in, "
        f"among 'files', got no such entry; {FIX_MANIFEST}"
    )


@pytest.mark.parametrize("location", ["../weights.data", "/weights.data"])
def test_external_data_outside_the_bundle_is_refused(bundle: Path, location: str) -> None:
    model = onnx.load(bundle / "clip.onnx")
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    (bundle / "clip.onnx").write_bytes(model.SerializeToString())
    message = error_of(lambda: rewrite(bundle))
    assert message.startswith(f"{bundle / 'clip.onnx'}: expected weights in a file inside the bundle (")
    assert f", got {location!r}; " in message


def test_weights_beyond_the_end_of_their_file_are_refused(bundle: Path) -> None:
    with_external_data(bundle)
    rewrite(bundle)
    os.truncate(bundle / "deblur.onnx.data", 10)
    entry = {"size": 10, "sha256": sha256_file(bundle / "deblur.onnx.data")}
    edit(bundle, lambda value: value["files"].update({"deblur.onnx.data": entry}))
    assert "expected weights within the 10 bytes of 'deblur.onnx.data', got bytes " in error_of(
        lambda: Bundle.load(bundle)
    )


def test_weights_at_an_address_in_memory_are_refused(bundle: Path) -> None:
    """ONNX Runtime takes the offset of this location for an address, even where a file of that name is listed."""
    location = "*/_ORT_MEM_ADDR_/*"
    model = onnx.load(bundle / "deblur.onnx")
    tensor = model.graph.initializer[-1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    (bundle / "deblur.onnx").write_bytes(model.SerializeToString())
    (bundle / location).parent.mkdir(parents=True)
    (bundle / location).write_bytes(bytes(10**6))
    assert "expected weights in a file inside the bundle" in error_of(lambda: rewrite(bundle))


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff\xff\x0f", b"\x3a\x05\x01", b"\xff" * 30, b"no graph"])
def test_what_is_no_protobuf_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "deblur.onnx").write_bytes(content)
    message = error_of(lambda: rewrite(bundle))
    assert message.startswith(f"{bundle / 'deblur.onnx'}: expected an ONNX graph, got something else (")


def test_write_lists_hashes_and_sizes_and_extra_files(bundle: Path) -> None:
    (bundle / "README.md").write_text("card")
    (bundle / "engines").mkdir()
    (bundle / "engines" / "a.engine").write_bytes(b"plan")
    stale = {"gone.onnx": FileEntry("0" * 64, 1)}
    manifest = msgspec.structs.replace(tiny_manifest(), files=stale)
    written = write_manifest(bundle, manifest, ["README.md", "engines/a.engine"])
    assert written == read_manifest(bundle)
    assert "gone.onnx" not in written.files
    assert written.files["README.md"].size == 4
    assert written.files["engines/a.engine"] == FileEntry(sha256_file(bundle / "engines" / "a.engine"), 4)
    Bundle.load(bundle)


def test_a_failed_write_leaves_the_old_manifest_and_nothing_else(bundle: Path) -> None:
    before = (bundle / MANIFEST_FILE).read_bytes()
    names = sorted(path.name for path in bundle.iterdir())
    assert "plain JSON values" in error_of(lambda: rewrite(bundle, parity={"psnr": np.float32(50)}))
    assert "plain JSON values" in error_of(lambda: rewrite(bundle, parity={"psnr": float("nan")}))
    assert "field 'created'" in error_of(lambda: rewrite(bundle, created="today"))
    assert "expected a file of the bundle, got none" in error_of(
        lambda: write_manifest(bundle, tiny_manifest(), ["missing"])
    )
    assert (bundle / MANIFEST_FILE).read_bytes() == before
    assert sorted(path.name for path in bundle.iterdir()) == names


def test_a_loaded_bundle_does_not_depend_on_the_working_folder(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pristine.parent)
    loaded = Bundle.load("tiny")
    monkeypatch.chdir(tmp_path)
    assert loaded.graph("clip").is_file()


# --- hostile bundles: SECURITY.md promises each of these


def relist(bundle: Path, name: str) -> None:
    """Puts the true size and hash of a file into the manifest, as whoever forges a bundle would."""
    entry = {"size": (bundle / name).stat().st_size, "sha256": sha256_file(bundle / name)}
    edit(bundle, lambda value: value["files"].update({name: entry}))


def test_what_is_no_file_is_not_waited_for(bundle: Path, tmp_path: Path) -> None:
    (bundle / "clip.onnx").unlink()
    os.mkfifo(bundle / "clip.onnx")
    assert "expected a file of the bundle, got none" in error_of(lambda: Bundle.load(bundle))
    (bundle / MANIFEST_FILE).unlink()
    os.mkfifo(bundle / MANIFEST_FILE)
    assert "expected a file of the bundle, got none" in error_of(lambda: read_manifest(bundle))
    (bundle / MANIFEST_FILE).unlink()
    (bundle / MANIFEST_FILE).symlink_to("/dev/zero")
    assert "expected a file of the bundle, got none" in error_of(lambda: read_manifest(bundle))


def test_a_link_to_itself_is_no_file(bundle: Path) -> None:
    (bundle / "clip.onnx").unlink()
    (bundle / "clip.onnx").symlink_to("clip.onnx")
    assert "expected a file of the bundle, got none" in error_of(lambda: Bundle.load(bundle))


def test_a_linked_folder_leads_out_of_the_bundle_no_more_than_a_linked_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle / "clip.onnx").rename(tmp_path / "outside" / "clip.onnx")
    (bundle / "inner").symlink_to(tmp_path / "outside")
    text = (bundle / MANIFEST_FILE).read_text(encoding="utf-8")
    (bundle / MANIFEST_FILE).write_text(text.replace('"clip.onnx"', '"inner/clip.onnx"'))
    assert "expected a file inside the bundle, got a link to" in error_of(lambda: Bundle.load(bundle))


@pytest.mark.parametrize("name", ["deblur.onnx", "text_embeddings.npy"])
def test_no_byte_is_parsed_before_its_hash_is_checked(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in ("check_graph", "read_text_embeddings"):
        real = getattr(bundle_module, parser)

        def parse(path: Path, *rest: Any, real: Any = real) -> Any:
            assert path.name != name, "parsed"
            return real(path, *rest)

        monkeypatch.setattr(bundle_module, parser, parse)
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    assert "expected SHA-256" in error_of(lambda: Bundle.load(bundle))


def test_a_graph_that_changes_after_it_was_verified_is_not_opened(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded.graph("deblur") == bundle / "deblur.onnx"
    other = bundle / "other"
    other.write_bytes((bundle / "deblur.onnx").read_bytes())
    os.replace(other, bundle / "deblur.onnx")
    assert error_of(lambda: loaded.graph("deblur")) == (
        f"{bundle / 'deblur.onnx'}: expected the file that was verified, got another; load the bundle again"
    )
    loaded.graph("clip")


def test_embeddings_whose_header_claims_much_take_no_memory(bundle: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 10000000000), }\n"
    claims = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    zipped = io.BytesIO()
    np.savez(zipped, a=np.zeros(3))
    for content in (claims, zipped.getvalue(), b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535):
        (bundle / "text_embeddings.npy").write_bytes(content)
        relist(bundle, "text_embeddings.npy")
        assert str(bundle / "text_embeddings.npy") in error_of(lambda: Bundle.load(bundle))


def test_a_graph_of_another_opset_than_the_manifest_says(bundle: Path) -> None:
    edit(bundle, lambda value: value.update(opset=19))
    assert "expected opset 19, as the manifest says, got 20" in error_of(lambda: Bundle.load(bundle))


def test_an_engine_is_read_no_further_than_its_size(bundle: Path) -> None:
    entry = make_engine(bundle, b"plan")
    path = bundle / entry.file
    rewrite(bundle, engines=(entry,))
    loaded = Bundle.load(bundle)
    assert loaded.read_engine(entry) == b"plan"
    os.truncate(path, 10**12)
    assert "got more bytes" in error_of(lambda: loaded.read_engine(entry))
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in error_of(lambda: loaded.read_engine(entry))
