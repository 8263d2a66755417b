"""Types of the manifest's fields, and its limits."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ldp_runtime.structs import matches

MAX_FILES = 1000
"""Most files, and most engines, of a bundle."""

MAX_BUNDLE_BYTES = 32 << 30
"""Most bytes that the files of a bundle have together, by the manifest; an engine may have as many."""

MAX_WINDOW = 4096
"""Largest window, patch or padding rule in px: what a small image grows to is bounded by it."""

MAX_EMBED_DIM = 16384
"""Longest feature."""

ENGINE_FOLDER = "engines"

_MAX_INTEGER = 2**53  # what every JSON reader keeps exactly
_MAX_SINGLE = 3.4028234663852886e38  # of FP32

# No wildcards: ONNX Runtime takes weights at an address in memory for the name "*/_ORT_MEM_ADDR_/*".
_PATH = r"(?!(?:.*/)?\.{0,2}(?:/|\Z))[A-Za-z0-9._+/-]"
_PATH_RULE = "at most 200 letters, digits and . _ + - / with no '.', '..' or empty part"

FILE_NAME = rf"\A{_PATH}{{1,200}}\Z"
"""Pattern of a path inside the bundle, with forward slashes."""

FILE_NAME_RULE = f"a file inside the bundle ({_PATH_RULE})"

FileName = Annotated[str, matches(FILE_NAME, FILE_NAME_RULE)]
# Backends tell formats by the suffix, and know others that are not checked here.
GraphName = Annotated[str, matches(rf"\A{_PATH}{{1,195}}\.onnx\Z", f"a file whose name ends in .onnx ({_PATH_RULE})")]
EngineName = Annotated[
    str, matches(rf"\A{ENGINE_FOLDER}/{_PATH}{{1,190}}\Z", f"a file in {ENGINE_FOLDER}/ ({_PATH_RULE})")
]
Sha256 = Annotated[str, matches(r"\A[0-9a-f]{64}\Z", "64 hexadecimal digits in lower case")]
Architecture = Annotated[str, matches(r"\Asm_[0-9]{1,9}\Z", "an architecture such as sm_89")]
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=_MAX_INTEGER)]
Bytes = Annotated[int, Meta(ge=0, le=MAX_BUNDLE_BYTES)]
Side = Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
Single = Annotated[float, Meta(ge=-_MAX_SINGLE, le=_MAX_SINGLE)]
PositiveSingle = Annotated[float, Meta(gt=0, le=_MAX_SINGLE)]
BlurRange = Annotated[float, Meta(gt=0, le=1000)]
"""Largest radius in px of a circle of confusion that a network was trained on."""
