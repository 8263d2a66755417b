"""Coverage-guided fuzzing of the image readers: ``python -m tests.fuzz.atheris_image -max_total_time=60``."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ldp_runtime.images", "tifffile", "PIL"]):
    from ldp_runtime.errors import LDPError
    from ldp_runtime.images.photo import encode_photo, read_photo

from tests.fuzz.harness import corpus, quiet
from tests.fuzz.image_files import originals

_FOLDER = tempfile.TemporaryDirectory(prefix="ldp-fuzz-atheris-")
_PATH = Path(_FOLDER.name) / "image"


def test_one_input(data: bytes) -> None:
    """A file: a photo that can be written again or our own error, else the fuzzer has found a bug."""
    _PATH.write_bytes(data)
    try:
        photo = read_photo(_PATH)
    except LDPError as error:
        assert "\n" not in str(error)
        return
    for name in ("a.png", "a.tif"):
        _PATH.write_bytes(encode_photo(name, photo))
        assert (read_photo(_PATH).pixels == photo.pixels).all()


if __name__ == "__main__":
    quiet()
    sys.argv += corpus(sys.argv[1:], [data for files in originals().values() for data in files.values()])
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
