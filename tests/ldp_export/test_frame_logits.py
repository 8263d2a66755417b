from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldp_export.data import PairSample
from ldp_export.frame_logits import CHUNK, chunk_logits, chunks


def test_the_cache_is_keyed_by_content(tmp_path: Path) -> None:
    class Counting:
        key, calls = b"clip", 0

        def __call__(self, sample: PairSample) -> NDArray[np.float32]:
            self.calls += 1
            return np.full((2, 3), sample.left[0, 0, 2], np.float32)

    def ask(dtype: type = np.uint8) -> tuple[list[NDArray[np.float32]], int]:
        estimator, rng = Counting(), np.random.default_rng(0)
        views = [rng.integers(0, 256, (2, 24, 33, 3)).astype(dtype) for _ in range(3)]
        pairs = [PairSample("pair", *view) for view in views]
        return chunk_logits(pairs, range(1, 3), estimator, tmp_path), estimator.calls  # type: ignore[arg-type]

    first, calls = ask()
    assert calls == 2
    assert len(first) == 2
    again, calls = ask()
    assert calls == 0
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert ask(np.uint16)[1] == 2  # other pixels
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert ask()[1] == 2
    Counting.key = b"another clip"
    assert ask()[1] == 2
    assert [len(chunk) for chunk in chunks(2 * CHUNK + 1)] == [CHUNK, CHUNK, 1]
