"""The stages on the host beside a copy of what they read and of what they write.

Stage and copy run in turn. Before each of them the caches are filled with other data, as the networks do between the
stages of a pair; memory that is written is new to both. Files are encoded and decoded in memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.results import Report, publish
from benchmarks.harness.sample import sample_pair
from benchmarks.harness.tables import load_text, markdown_table, significant, size_text
from benchmarks.harness.timing import Ratio, ratio, summarise
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import clip_shapes
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.host import CLIP_BATCH
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photos, encode_photo
from ldp_runtime.stages.blend import TileBlender
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.geometry import WindowGrid
from ldp_runtime.stages.pixels import PaddedPair, new_image, write_pixels
from ldp_runtime.stages.tiles import TileGrid, least_side

EXAMPLES = """\
examples:
  python -m benchmarks stages
  python -m benchmarks stages --bundle ldp-nano --shape 560x840 1120x1680

Writes stages-NAME.json and stages-NAME.md into the output folder.
"""

BITS = {8: np.uint8, 16: np.uint16}
_CACHE_BYTES = 2**28


@dataclass(frozen=True)
class Stage:
    """A stage of a pair.

    Attributes:
        name: For people.
        work: Runs it.
        moves: Bytes that are read and bytes that are written, for each piece of memory that is made.
    """

    name: str
    work: Callable[[], object]
    moves: Sequence[tuple[int, int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``benchmarks.__main__``."""
    options.add_bundle(parser)
    options.add_shapes(parser, [options.DEFAULT_SHAPE])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="runs of each (default: %(default)s)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``benchmarks.__main__``."""
    from benchmarks.harness.bundles import open_bundle

    options.check_positive(arguments, "rounds")
    bundle: Bundle = open_bundle(arguments.bundle, arguments.config)
    with watch_load() as load:
        series = [
            {"shape": list(shape), "bits": bits, "stages": measure(stages, arguments.rounds)}
            for shape in arguments.shape
            for bits in BITS
            for stages in [host_stages(bundle.manifest, shape, bits)]
        ]
    data = {"rounds": arguments.rounds, "load_average": load, "series": series}
    report = Report.new("stages", data, bundle)
    publish(report, to_markdown(report), arguments.output)


def host_stages(manifest: Manifest, shape: tuple[int, int], bits: int) -> list[Stage]:
    """The stages of a pair, on the sample.

    Args:
        manifest: The bundle's, for its sizes.
        shape: Height and width in px.
        bits: 8 or 16.
    """
    rng = np.random.default_rng(0)
    finer = 1 << (bits - 8)  # of which the sample has nothing
    left, right = (view.astype(BITS[bits]) * finer + rng.integers(0, finer, view.shape) for view in sample_pair(shape))
    left, right = (view.astype(BITS[bits]) for view in (left, right))
    H, W = size = manifest.padding.padded_size(*shape)
    padded = PaddedPair(left, right, size)
    restored = padded.region(0, 0, H, W)[:3] + rng.normal(0, 0.02, (3, H, W)).astype(np.float32)

    def finish() -> NDArray[Any]:
        image, pixels = new_image(left, "horizontal")
        write_pixels(restored, pixels)
        return image

    views = left.nbytes + right.nbytes
    stages = [Stage("prepare, the pair", lambda: padded.region(0, 0, H, W), [(views, 6 * H * W * 4)])]
    if manifest.clip is not None:
        stages.append(_windows_stage(manifest, padded, left.dtype))
        logits = rng.normal(size=(H // manifest.blur_cell, W // manifest.blur_cell)).astype(np.float32)
        stages.append(
            Stage(
                "blur map",
                lambda: upsample_map(logits, shape, manifest.blur_cell),
                [(logits.nbytes, 4 * shape[0] * shape[1])],
            )
        )
    stages.append(Stage("finish", finish, [(restored.nbytes, left.nbytes)]))
    multiple = manifest.tile_multiple
    tiles = TileGrid.even(H, W, max(512, least_side(multiple)), multiple=multiple)
    if tiles is not None and len(tiles) > 1:
        tile = np.zeros((3, *tiles.tile), np.float32)  # products of other numbers would shrink from run to run

        def blend() -> None:
            blender = TileBlender(tiles)
            for _ in range(len(tiles)):
                blender.add(tile)

        stages.append(Stage("blend", blend, [(tile.nbytes, tile.nbytes)] * len(tiles)))
    image = finish()
    photo = encode_photo("restored.png", Photo(image))
    files = [(name, encode_photo(name, Photo(view))) for name, view in (("left.png", left), ("right.png", right))]
    packed = sum(len(data) for _, data in files)
    stages.append(Stage("read PNG, both", lambda: decode_photos(files), [(packed, views)]))
    stages.append(Stage("write PNG", lambda: encode_photo("a.png", Photo(image)), [(image.nbytes, len(photo))]))
    return stages


def _windows_stage(manifest: Manifest, padded: PaddedPair, dtype: np.dtype[Any]) -> Stage:
    spec = manifest.require_clip()
    s, p = spec.window, spec.patch
    grid = WindowGrid.cover(*padded.size, window=s, overlap=spec.overlap, patch=p)
    source = padded.extended((grid.rows.grid * p, grid.columns.grid * p))
    origins = [(y * p, x * p) for y, x in grid.origins()]
    batches = [origins[first : first + CLIP_BATCH] for first in range(0, len(origins), CLIP_BATCH)]

    def work() -> None:
        for batch in batches:
            source.canvases(batch, s, spec.mean, spec.std, manifest.canvases)

    floats = sum(math.prod(shape) for shape in clip_shapes(1, s, manifest.canvases).values())
    moves = [(2 * 3 * s * s * dtype.itemsize * len(batch), 4 * floats * len(batch)) for batch in batches]
    return Stage("prepare, CLIP's windows", work, moves)


def measure(stages: Sequence[Stage], rounds: int) -> list[dict[str, Any]]:
    """Times each stage and the copy of its bytes in turn; a first run of each is not counted."""
    evicting = np.ones(_CACHE_BYTES, np.uint8)
    rows = []
    for stage in stages:
        memory = np.ones(sum(map(sum, stage.moves)), np.uint8)
        works: tuple[Callable[[], object], ...] = stage.work, functools.partial(copy, memory, stage.moves)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            for seconds, work in zip(times, works, strict=True):
                evicting.max()
                begin = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - begin)
        blocks, copies = ([[value] for value in seconds[1:]] for seconds in times)
        rows.append(
            {
                "name": stage.name,
                "bytes": [sum(n) for n in zip(*stage.moves, strict=True)],
                "seconds": asdict(summarise(blocks)),
                "copy": asdict(summarise(copies)),
                "ratio": asdict(ratio(blocks, copies)),
            }
        )
    return rows


def copy(memory: NDArray[np.uint8], moves: Sequence[tuple[int, int]]) -> None:
    """Copies as many bytes as a stage reads and as it writes, piece by piece to new memory."""
    at = 0
    for size in itertools.chain.from_iterable(moves):
        memory[at : at + size].copy()
        at += size


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title."""
    data = report.data
    parts = [f"# Stages on the host, sizes of {report.name}"]
    for series in data["series"]:
        rows = []
        for stage in series["stages"]:
            times = Ratio(**stage["ratio"])
            spread = "" if times.low is None else f" ({significant(times.low, 2)}–{significant(times.high, 2)})"
            moved = (f"{n / 1e6:.1f}" for n in stage["bytes"])
            timed = (significant(1e3 * stage[key]["median"]) for key in ("seconds", "copy"))
            rows.append([stage["name"], *moved, *timed, f"{significant(times.value, 2)}{spread}"])
        header = ["stage", "MB read", "MB written", "ms", "a copy, ms", "ratio"]
        parts += [f"## {size_text(series['shape'])} px, {series['bits']} bits", markdown_table(header, rows)]
    parts.append(
        f"Medians of {data['rounds']} runs in turn; in brackets the 95 % interval of the ratio. The copy is one of "
        "what a stage reads and of what it writes, to new memory, in one thread; files take a thread per core. "
        f"Load average before and after: {load_text(data['load_average'])}."
    )
    return "\n\n".join(parts) + "\n"
