import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ldp_runtime.bundle.fields import MAX_FILES
from ldp_runtime.bundle.manifest import BlurMapSpec, Manifest
from ldp_runtime.bundle.schema import MAX_MANIFEST_BYTES, manifest_from_json, parse_manifest
from ldp_runtime.errors import BundleError
from tests.fuzz.bundle_files import mutate_manifest
from tests.ldp_runtime.tiny_bundle import tiny_manifest

FIX = "export the bundle again with ldp-export onnx"
FILE = {"sha256": "0" * 64, "size": 1}
HEAD = {"file": "engines/1", **FILE}
PATCHES = {"method": "patch", "network_input": "map", "patch": 40}
PROMPT = {"text": "A symmetric image.", "format": "dp-aware", "offset": 0.0, "temperature": 1.0}
ENGINE = {
    "kind": "deblur", "flavour": "rtx", "version": "1.0", "targets": ["sm_86", "sm_89"], "precision": "fp16",
    "profile": {"pair": {"min": [1], "opt": [1], "max": [3]}},
    "key": "0" * 64, "file": "engines/0", "sha256": "0" * 64, "size": 1,
}  # fmt: skip

Change = Callable[[dict[str, Any]], object]


def tiny(*, clip: bool = True, patches: bool = False) -> dict[str, Any]:
    """The tiny bundle's manifest with files and an engine, as it stands in its file.

    Args:
        clip: With a CLIP graph.
        patches: With a blur map from patches.
    """
    value: dict[str, Any] = json.loads(json.dumps(tiny_manifest(clip=clip).to_json()))
    names = [name for graphs in value["graphs"].values() for name in graphs.values()]
    value |= {"files": {name: dict(FILE) for name in [*names, *(["text_embeddings.npy"] if clip else [])]}}
    value |= {"engines": [json.loads(json.dumps(ENGINE))]}
    if patches:
        value |= {"blur_map": dict(PATCHES), "prompts": [dict(PROMPT)]}
    return value


def at(*path: Any) -> Change:
    """Puts the last argument at the path of the others."""
    *parents, last, value = path

    def change(manifest: dict[str, Any]) -> None:
        functools.reduce(operator.getitem, parents, manifest)[last] = value

    return change


def drop(*path: Any) -> Change:
    *parents, last = path

    def change(manifest: dict[str, Any]) -> None:
        del functools.reduce(operator.getitem, parents, manifest)[last]

    return change


def engine(name: str, value: object) -> Change:
    return at("engines", 0, name, value)


def sizes(opt: list[int]) -> Change:
    return at("engines", 0, "profile", "pair", "opt", opt)


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable()
    return message


def problem_of(change: Change, **kind: bool) -> str:
    value = tiny(**kind)
    change(value)
    before = json.dumps(value)
    message = error_of(lambda: manifest_from_json(value))
    assert json.dumps(value) == before
    return message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (at("schema", "other"), "'schema': expected 'ldp-bundle', got \"other\""),
        (at("name", ""), "'name': expected a non-empty string, got \"\""),
        (at("created", "noon"), "'created': expected a time in ISO 8601, got \"noon\""),
        (at("network", []), "'network': expected an object, got []"),
        (drop("clip"), "'clip' is missing"),
        (at("clip", 3), "'clip': expected an object or null, got 3"),
        (drop("clip", "patch"), "'clip.patch' is missing"),
        (at("clip", "patch", "16"), "'clip.patch': expected an integer, got \"16\""),
        (at("clip", "patch", True), "'clip.patch': expected an integer, got true"),
        (at("clip", "patch", 0), "'clip.patch': expected an integer >= 1, got 0"),
        (at("clip", "window", 60), "'clip.window': expected a multiple of the patch, 16, got 60"),
        (at("clip", "overlap", 49), "'clip.overlap': expected at most 48, a patch less than a window, got 49"),
        (at("clip", "mean", [1, 2]), "'clip.mean': expected a list of length 3, got [1, 2]"),
        (at("clip", "std", [0.3, 0, 0.3]), "'clip.std[1]': expected a number > 0.0, got 0"),
        (at("clip", "quick_gelu", 0), "'clip.quick_gelu': expected true or false, got 0"),
        (at("clip", "extra", 1), "'clip.extra' is unknown; expected architecture, patch, "),
        (at("extra", 1), "'extra' is unknown; expected name, created, "),
        (at("a - at `$.b.c", 1), "'a - at `$.b.c' is unknown; expected name, "),
        (at("prompts", {}), "'prompts': expected a list, got {}"),
        (at("prompts", 2, "sharp"), "'prompts[2]': expected an object, got \"sharp\""),
        (drop("prompts", 7), "'prompts': expected 8 prompts, got 7"),
        (
            at("prompts", 1, "format", "other"),
            "'prompts[1].format': expected one of blur-aware, dp-aware, got \"other\"",
        ),
        (at("prompts", 4, "temperature", 0), "'prompts[4].temperature': expected a number other than zero, got 0.0"),
        (at("ensemble", "all"), "'ensemble': expected one of ens2, blur-aware, dp-aware"),
        (at("ensemble", 8), "'ensemble': expected an integer <= 7, got 8"),
        (at("ensemble", -1), "'ensemble': expected an integer >= 0, got -1"),
        (at("padding", "mode", "zero"), "'padding.mode': expected reflect-101, got \"zero\""),
        (at("padding", "multiple", 24), "'padding.multiple': expected a multiple of 16, got 24"),
        (drop("graphs", "clip"), "'graphs': expected clip and deblur, got [\"deblur\"]"),
        (drop("graphs", "clip", "fp32"), "'graphs.clip': expected a graph in fp32, got [\"fp16\"]"),
        (at("graphs", "clip", "int4", "clip.onnx"), "'graphs.clip': expected one of fp32, fp16, int8"),
        (at("graphs", "clip", "fp16", 16), "'graphs.clip.fp16': expected a string, got 16"),
        (at("tools", {"onnx": "1", "torch": 2}), "'tools.torch': expected a string, got 2"),
        (at("files", "clip.onnx", "sha256", "ABC"), "'files.clip.onnx.sha256': expected 64 hexadecimal digits"),
        (at("files", "clip.onnx", "size", -1), "'files.clip.onnx.size': expected an integer >= 0, got -1"),
        (at("files", "bundle.json", FILE), "'files': expected files other than the manifest"),
    ],
)
def test_a_wrong_field_is_named(change: Change, problem: str) -> None:
    message = problem_of(change)
    assert message.startswith(f"bundle.json: field {problem}")
    assert message.endswith(f"; {FIX}")


@pytest.mark.parametrize(
    ("file", "name"), [("other.onnx", "graphs.deblur.fp32"), ("text_embeddings.npy", "text embeddings")]
)
def test_every_file_that_is_needed_is_listed(file: str, name: str) -> None:
    def change(value: dict[str, Any]) -> None:
        value["graphs"]["deblur"]["fp32"] = "other.onnx"
        value["files"].pop("text_embeddings.npy")
        value["files"]["other.onnx" if file != "other.onnx" else "text_embeddings.npy"] = FILE

    assert f"field 'files': expected an entry for {file!r} ({name}), got [" in problem_of(change)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (at("engines", 0, "x"), "field 'engines[0]': expected an object, got \"x\""),
        (engine("kind", "blur"), "field 'engines[0].kind': expected one of clip, deblur"),
        (engine("flavour", "lean"), "field 'engines[0].flavour': expected one of rtx, tensorrt"),
        (engine("version", ""), "field 'engines[0].version': expected a non-empty string"),
        (engine("targets", []), "field 'engines[0].targets': expected a non-empty list"),
        (engine("targets", ["sm_89", "sm_86"]), "field 'engines[0].targets': expected architectures"),
        (engine("targets", ["89"]), "field 'engines[0].targets[0]': expected an architecture such as"),
        (engine("precision", "fp8"), "field 'engines[0].precision': expected one of fp16"),
        (engine("profile", {}), "field 'engines[0].profile': expected a non-empty object"),
        (drop("engines", 0, "profile", "pair", "max"), "field 'engines[0].profile.pair.max' is missing"),
        (sizes([0]), "profile.pair.opt[0]': expected an integer >= 1"),
        (sizes([4]), "profile.pair.opt': expected sizes from those of min"),
        (sizes([1, 1]), "expected sizes from those of min"),
        (at("engines", 0, "profile", "pair", "max", [3, 3]), "expected sizes from those of min"),
        (engine("key", "abc"), "field 'engines[0].key': expected 64 hexadecimal digits"),
        (engine("file", "x.engine"), "field 'engines[0].file': expected a file in engines/"),
        (engine("file", "engines/../../x"), "field 'engines[0].file': expected a file in engines/"),
        (engine("size", 0), "field 'engines[0].size': expected an integer >= 1"),
        (engine("head", {**FILE, "file": "x"}), "field 'engines[0].head.file': expected a file in engines/"),
        (
            at("engines", 0, {**ENGINE, "kind": "clip", "head": HEAD}),
            "field 'engines[0].head': expected a head of deblur",
        ),
        (engine("head", {**HEAD, "size": 0}), "field 'engines[0].head.size': expected an integer >= 1"),
        (engine("colour", "red"), "field 'engines[0].colour' is unknown; expected kind, flavour, "),
        (drop("engines", 0, "file"), "field 'engines[0].file' is missing"),
    ],
)
def test_a_wrong_engine_is_named(change: Change, problem: str) -> None:
    assert problem in problem_of(change)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": "pixel"}, "field 'blur_map.method': expected one of dense, patch, got \"pixel\""),
        ({"network_input": "both"}, "field 'blur_map.network_input': expected one of logits, map, got \"both\""),
        ({"patch": 0}, "field 'blur_map.patch': expected an integer >= 1, got 0"),
        ({"patch": None}, "field 'blur_map.patch': expected an integer with patch, got null"),
        ({"method": "dense"}, "field 'blur_map.patch': expected null with dense, got 40"),
        ({"side": 40}, "field 'blur_map.side' is unknown; expected method, network_input, patch"),
        ({"method": "dense", "patch": None}, "field 'prompts': expected 8 prompts, got 1"),
    ],
)
def test_a_wrong_blur_map_is_named(changes: dict[str, Any], problem: str) -> None:
    assert problem in problem_of(lambda value: value["blur_map"].update(changes), patches=True)


def test_patches_have_one_prompt_of_symmetry() -> None:
    twice = problem_of(at("prompts", [PROMPT, PROMPT]), patches=True)
    assert "field 'prompts': expected one prompt, got 2" in twice
    other = problem_of(at("prompts", 0, "format", "blur-aware"), patches=True)
    assert "at least one prompt of format dp-aware" in other


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (at("prompts", [PROMPT]), "field 'prompts': expected 0 prompts, got 1"),
        (at("blur_map", PATCHES), "field 'blur_map': expected no such field without clip, got "),
        (at("graphs", "clip", {"fp32": "deblur.onnx"}), "field 'graphs': expected deblur, got "),
        (engine("kind", "clip"), "field 'engines[0].kind': expected one of deblur, got "),
    ],
)
def test_what_belongs_to_a_clip_graph_is_refused_without_one(change: Change, problem: str) -> None:
    assert problem in problem_of(change, clip=False)


def test_every_field_is_required() -> None:
    for name in tiny():
        message = problem_of(drop(name))
        expected = {
            "schema": "field 'schema': expected 'ldp-bundle', got null",
            "schema_version": "expected schema_version 1, got null; upgrade ldp if the bundle is newer, or",
        }
        assert expected.get(name, f"field {name!r} is missing") in message


def test_an_unknown_schema_version() -> None:
    assert problem_of(at("schema_version", 2)) == (
        f"bundle.json: expected schema_version 1, got 2; upgrade ldp if the bundle is newer, or {FIX}"
    )


UNSAFE = (
    *("/etc/passwd", "../a", "engines/../../x", "./a", "a//b", "C:/x", "..\\x", "*", "*/_ORT_MEM_ADDR_/*", "é"),
    "a" * 201,
)


@pytest.mark.parametrize("name", ["", ".", "..", "a/", "a/.", "a/..", "a\n", *UNSAFE])
def test_unsafe_names_are_refused(name: str) -> None:
    assert "field 'files': expected " in problem_of(at("files", name, FILE))


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_graphs_are_refused(name: str) -> None:
    change = at("graphs", "clip", "fp32", f"{name}.onnx")
    assert "field 'graphs.clip.fp32': expected a file whose name ends in .onnx" in problem_of(change)


@pytest.mark.parametrize("name", ["a", "...", ".a", "a/..b", "a/.b/c", "a" * 200])
def test_safe_names_are_not(name: str) -> None:
    value = tiny()
    value["files"][name] = FILE
    assert name in manifest_from_json(value).files


@pytest.mark.parametrize("kind", [{}, {"patches": True}, {"clip": False}])
def test_a_manifest_survives_json(kind: dict[str, bool]) -> None:
    value = tiny(**kind)
    manifest = manifest_from_json(value)
    assert json.loads(json.dumps(manifest.to_json())) == value
    assert (manifest.blur_map != BlurMapSpec()) == ("patches" in kind)


@pytest.mark.parametrize("ensemble", ["ens1-blur-aware", 0, 7])
def test_ensembles_and_single_prompts_of_table_5(ensemble: str | int) -> None:
    assert manifest_from_json({**tiny(), "ensemble": ensemble}).ensemble == ensemble


# --- hostile manifests: SECURITY.md promises each of these


def parse(text: str | bytes) -> Manifest:
    return parse_manifest(text if isinstance(text, bytes) else text.encode(), Path("bundle.json"))


@pytest.mark.parametrize("text", ["", "{", "[1, 2"])
def test_a_manifest_that_is_no_json(text: str) -> None:
    message = error_of(lambda: parse(text.encode("utf-16")))
    assert message.startswith("bundle.json: expected JSON, got ")
    assert message.endswith(f"get the bundle again or export it again with {FIX.partition(' with ')[2]}")


@pytest.mark.parametrize("text", ["3", "[]", '"bundle"', "null"])
def test_a_manifest_that_is_no_object(text: str) -> None:
    assert error_of(lambda: parse(text)) == f"bundle.json: expected an object, got {text}; {FIX}"


def test_a_manifest_of_a_million_entries_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entries in (("files", {f"{i}": FILE for i in range(MAX_FILES + 1)}), ("engines", [ENGINE] * 1001)):
        message = problem_of(at(name, entries))
        assert f"field {name!r}: expected a" in message
        assert f"of length <= {MAX_FILES}" in message
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("parsed"))
    text = b'{"files": {' + b"".join(b'"%d": {"sha256": "", "size": 1},' % i for i in range(150_000))
    assert f"bundle.json: expected at most {MAX_MANIFEST_BYTES} bytes, got more" in error_of(lambda: parse(text))


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
def test_a_deep_manifest_is_refused(opening: str, closing: str) -> None:
    def text(depth: int) -> str:
        nested = opening * (depth - 2) + "1" + closing * (depth - 2)  # inside the manifest and "training"
        return json.dumps(tiny()).replace('"training": {}', f'"training": {{"a": {nested}}}')

    parse(text(32))
    for depth in (33, 100_000):
        message = error_of(lambda depth=depth: parse(text(depth)))
        assert "expected at most 32 objects and lists inside each other" in message


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"name": "tiny"', '"name": "tiny", "name": "other"', "the field 'name' twice"),
        ('"offset": 1.0', '"offset": NaN', "NaN, which is no JSON"),
        ('"offset": 1.0', '"offset": -Infinity', "-Infinity, which is no JSON"),
        ('"offset": 1.0', '"offset": 1e999', "field 'prompts[0].offset': expected a finite number"),
        ('"training": {}', '"training": {"a": 1e999}', "field 'training.a': expected a finite number"),
        ('"offset": 1.0', f'"offset": 1{"0" * 400}', "field 'prompts[0].offset': expected a finite number"),
        ('"offset": 1.0', f'"offset": 1{"0" * 50}', "field 'prompts[0].offset': expected a number <= 3.4"),
        ('"offset": 1.0', f'"offset": 1{"0" * 5000}', "expected JSON, got "),
        ('"window": 64', f'"window": {2**40}', "field 'clip.window': expected an integer <= 4096"),
        ('"patch": 16', '"patch": 4097', "field 'clip.patch': expected an integer <= 4096"),
        ('"multiple": 32', '"multiple": 1048576', "field 'padding.multiple': expected an integer <= 4096"),
        ('"embed_dim": 24', f'"embed_dim": {10**12}', "field 'clip.embed_dim': expected an integer <= 16384"),
        ('"size": 1}, ', f'"size": {2**40}}}, ', "field 'files.clip.onnx.size': expected an integer <= 34359738368"),
        (
            '"size": 1}, ',
            f'"size": {2**35}}}, ',
            "field 'files': expected at most 34359738368 bytes in all files together",
        ),
        ('"config": "tiny"', '"encoder": 3', "field 'network.encoder': expected a list"),
        ('"config": "tiny"', '"stem": 0', "field 'network.stem': expected an integer >= 1"),
        ('"config": "tiny"', '"window": "all"', "field 'network.window': expected an integer or null"),
        ('"name": "tiny"', '"name": "tiny\\u001b[2J"', "field 'name': expected printable characters"),
        ('"name": "tiny"', '"name": "\\ud800"', "field 'name': expected printable characters"),
        ('"training": {}', '"training": {"a": "\\ud800"}', "field 'training.a': expected printable characters"),
        ('"name": "tiny"', '"\\u001b[2J": 1', "field '': expected printable characters"),
        ('"fp32": "clip.onnx"', '"fp32": "clip.xml"', "expected a file whose name ends in .onnx"),
    ],
)
def test_hostile_values_are_refused(before: str, after: str, problem: str) -> None:
    text = json.dumps(tiny())
    assert before in text
    assert problem in error_of(lambda: parse(text.replace(before, after, 1)))


def test_any_change_is_read_or_refused_in_one_line() -> None:
    for seed in range(300):
        random = Random(seed)
        data = json.dumps(tiny(clip=seed % 3 != 0, patches=seed % 3 == 1)).encode()
        for _ in range(random.randint(1, 3)):
            data = mutate_manifest(random, data)
        try:
            manifest = parse(data)
        except BundleError as error:
            assert str(error).isprintable()
        else:
            assert manifest_from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
