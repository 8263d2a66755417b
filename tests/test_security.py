"""``SECURITY.md``: each promise has the tests that it names, in the files that it names, and the limits of the code."""

import re
from pathlib import Path

import pytest

from ldp_runtime import selftest
from ldp_runtime.bundle import fields, npy_files, onnx_files, schema
from ldp_runtime.images import decode, jpeg, photo, pnm, raw, raw_container, tiff

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PATHS = sorted((ROOT / "tests").rglob("test_*.py"))
SECTIONS = {
    title: body for title, body in re.findall(r"^## (Promises on \w+)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
}


def rows(section: str) -> list[list[str]]:
    """The cells of the section's table, without its header."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("title", ["Promises on bundles", "Promises on images"])
def test_each_promise_has_its_tests(title: str) -> None:
    usual = re.findall(r"`[\w/]*?(test_\w+\.py)`", SECTIONS[title].partition("unless another file is named")[0])
    assert usual
    for promise, _, tests in rows(SECTIONS[title]):
        files, names = usual, re.findall(r"`([\w.]+)`", tests)
        assert names or tests == "the same", promise
        for name in names:
            if name.endswith(".py"):
                assert any(path.name == name for path in PATHS), promise
                files = [name]
            else:
                sources = [path.read_text(encoding="utf-8") for path in PATHS if path.name in files]
                assert any(re.search(rf"^def {name}\(", source, re.MULTILINE) for source in sources), (promise, name)


def test_the_limits_are_those_of_the_code() -> None:
    limits = {
        "schema version 1": schema.SCHEMA_VERSION == 1,
        "4 MiB": schema.MAX_MANIFEST_BYTES == 4 << 20,
        "depth 32": schema.MAX_DEPTH == 32,
        "1000 files": fields.MAX_FILES == 1000,
        "up to 4096 px": fields.MAX_WINDOW == 4096,
        "16 384 numbers": fields.MAX_EMBED_DIM == 16384,
        "32 GiB": fields.MAX_BUNDLE_BYTES == 32 << 30,
        "4096 bytes of header": npy_files.HEADER_BYTES == 4096,
        "64 MiB of sample": selftest.MAX_SAMPLE_BYTES == 64 << 20,
        "2 GiB": onnx_files.MAX_GRAPH_BYTES == (2 << 30) - 1,
        "a million fields": onnx_files.MAX_FIELDS == 10**6,
        "opset 17 to 24": (onnx_files.OPSETS[0], onnx_files.OPSETS[-1]) == (17, 24),
        "2^31 elements": onnx_files.MAX_ELEMENTS == 2**31 - 1,
        "2^28 pixels": decode.MAX_PIXELS == 2**28,
        "65 535 px per side": decode.MAX_SIDE == 65535,
        "files of 4 GiB": photo.MAX_FILE_BYTES == 4 << 30,
        "1040 bytes of pixels per byte of deflate": decode.DEFLATE_RATIO == 1040,
        "64 pages": tiff.MAX_PAGES == 64,
        "100 scans": jpeg.MAX_SCANS == 100,
        "64 KiB of header, 9 digits": (pnm.LONGEST_HEADER, pnm.MOST_DIGITS) == (64 << 10, 9),
        "16 pixels per byte": raw.PIXELS_PER_BYTE == 16,
        "32 directories": raw_container.MOST_DIRECTORIES == 32,
    }
    assert [phrase for phrase, holds in limits.items() if not holds or phrase not in PAGE] == []
