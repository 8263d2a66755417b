"""Times of reading and writing image files."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.tables import megapixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PAPER = (1120, 1680)
"""The pairs of the dual-pixel test set (Section 4.1)."""

FORMATS = (("PNG", 8), ("PNG", 16), ("TIFF", 8), ("TIFF", 16), ("JPEG", 8))
"""The files that are timed, and their bits."""

_SUFFIXES = {"PNG": ".png", "TIFF": ".tif", "JPEG": ".jpg"}

_REPEATS = 5


@dataclass(frozen=True)
class Coding:
    """Times and size of one kind of image file.

    Attributes:
        format: "PNG", "TIFF" or "JPEG".
        bits: Bits per sample.
        read: Seconds of CPU time per megapixel.
        write: The same of writing.
        nbytes: Bytes per megapixel of one image.
    """

    format: str
    bits: int
    read: float
    write: float
    nbytes: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.format} {self.bits} bits"

    def core_seconds(self, shape: tuple[int, int]) -> float:
        """CPU seconds of reading both views and writing the restored image."""
        return (2 * self.read + self.write) * megapixels(shape)

    def pair_bytes(self, shape: tuple[int, int]) -> float:
        """Bytes of both views and the restored image."""
        return 3 * self.nbytes * megapixels(shape)


def measure_coding(shape: tuple[int, int] = PAPER) -> list[Coding]:
    """Times reading and writing the sample, repeated or cut to a size, in files of each of ``FORMATS``."""
    from tqdm import tqdm

    from benchmarks.harness.sample import sample_pair
    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import encode_photo, read_photo

    pixels = sample_pair(shape)[0]
    found = []
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as folder:
        for kind, bits in tqdm(FORMATS, "files", disable=None):
            photo = Photo(pixels if bits == 8 else _with_low_bits(pixels))
            path = Path(folder) / f"picture{_SUFFIXES[kind]}"
            content = encode_photo(path, photo)
            path.write_bytes(content)
            write = _cpu_seconds(functools.partial(encode_photo, path, photo))
            read = _cpu_seconds(functools.partial(read_photo, path))
            size = megapixels(shape)
            found.append(Coding(kind, bits, read / size, write / size, len(content) / size))
    return found


def _with_low_bits(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """16 bits with noise in the low ones, as in a photo: without noise they compress to nothing."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint16)
    sixteen: NDArray[np.uint16] = pixels.astype(np.uint16) * np.uint16(256) + noise
    return sixteen


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads; the median of a few runs."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)
