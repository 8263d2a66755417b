"""Coverage-guided fuzzing of the manifest and graph readers.

``python -m tests.fuzz.atheris_manifest -max_total_time=60``
"""

import json
import sys

import atheris

with atheris.instrument_imports(include=["ldp_runtime.bundle", "ldp_runtime.structs", "json"]):
    from ldp_runtime.bundle.onnx_files import read_graph
    from ldp_runtime.bundle.schema import manifest_from_json, parse_manifest
    from ldp_runtime.errors import LDPError

from pathlib import Path

from tests.fuzz.cases import tiny_bundle
from tests.fuzz.harness import corpus


def test_one_input(data: bytes) -> None:
    """A manifest, or after a zero byte a graph: a value or our own error, else the fuzzer has found a bug."""
    if data.startswith(b"\0"):
        try:
            read_graph(data[1:])
        except ValueError as error:
            assert str(error)
        return
    try:
        manifest = parse_manifest(data, Path("bundle.json"))
    except LDPError as error:
        assert "\n" not in str(error)
        return
    assert manifest_from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


if __name__ == "__main__":
    _BUNDLE = tiny_bundle()
    _SEEDS = [(_BUNDLE / "bundle.json").read_bytes()]
    _SEEDS += [b"\0" + (_BUNDLE / name).read_bytes() for name in ("clip.fp16.onnx", "deblur.fp16.onnx")]
    sys.argv += corpus(sys.argv[1:], _SEEDS)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
