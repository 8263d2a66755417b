"""Growth of time and memory with the image: tiles keep time linear in pixels and working memory constant.

Each size is restored once, in a process of its own, so that its peak memory is its own too. Working memory is the peak
beyond the views, the restored image and the open bundle. A line is fitted to each. The seams are measured as well: the
difference between an image in tiles and one in one piece, by the halo that the tiles share.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.processes import answer_spec, run_spec
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.sample import sample_pair
from benchmarks.harness.tables import load_text, markdown_table, mebibytes, significant, size_text
from ldp_runtime.commands.options import parse_tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks scaling
  python -m benchmarks scaling --config small --shape 2240x3360 3168x4752 4480x6720
  python -m benchmarks scaling --tile 1024 --backend onnxruntime:fp32
  python -m benchmarks scaling --shape 560x840 1120x1680 2240x3360 --tile off

Writes scaling-NAME.json and scaling-NAME.md into the output folder.
"""

DEFAULT_SHAPES = ((3000, 4000), (4000, 5328), (5328, 7104), (7104, 9472), (8736, 11648))
"""From 12 to 100 megapixels; in one piece none fits into a laptop's memory."""

SEAM_HALOS = (32, 48, 64, 96, 128, 192)
SEAM_SHAPE = (1024, 1408)
SEAM_TILE = 512
"""Longest tile for the seams in px; a wide halo may need longer tiles."""


@dataclass(frozen=True)
class Spec:
    """The work of a process.

    Attributes:
        bundle: Folder of the bundle.
        backend: Name of a backend, or "auto".
        precision: A precision of it, or "auto".
        tile: See ``Deblurrer.from_bundle``.
        threads: CPU threads, or None for the backend's own choice.
        shape: Height and width in px.
    """

    bundle: str
    backend: str
    precision: str
    tile: int | str
    threads: int | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Point:
    """The result of a process.

    Attributes:
        shape: Height and width in px.
        seconds: Wall time from the views in memory to the restored image in memory, without opening the graphs.
        stages: Seconds by stage.
        tiles: Their number.
        images: Bytes of both views and the restored image.
        peak: Peak resident bytes of the process.
        working: Bytes of the peak beyond the images and the loaded bundle.
        backend: Its name.
        precision: Its precision.
    """

    shape: tuple[int, int]
    seconds: float
    stages: Mapping[str, float]
    tiles: int
    images: int
    peak: int
    working: int
    backend: str
    precision: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    options.add_backend(parser)
    parser.add_argument("--tile", type=parse_tile, default="auto", metavar="auto|N|off", help="see ldp deblur")
    options.add_threads(parser)
    options.add_shapes(parser, DEFAULT_SHAPES)
    parser.add_argument("--no-seams", action="store_true", help="leave the seams out")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the results."""
    from tqdm import tqdm

    from benchmarks.harness.bundles import open_bundle

    bundle = open_bundle(arguments.bundle, arguments.config)
    backend, precision = options.split_backend(arguments.backend)
    with watch_load() as load:
        points = [
            measure(Spec(str(bundle.path), backend, precision, arguments.tile, arguments.threads, shape))
            for shape in tqdm(arguments.shape, disable=None, unit="size")
        ]
        seams = [] if arguments.no_seams else measure_seams(bundle, threads=arguments.threads)
    data = {
        "tile": arguments.tile,
        "threads": arguments.threads,
        "load_average": load,
        "points": [asdict(point) for point in points],
        "fits": fits(points),
        "seams": seams,
    }
    report = Report.new("scaling", data, bundle)
    publish(report, to_markdown(report), arguments.output)


def measure(spec: Spec) -> Point:
    """Restores a pair in a process of its own.

    Raises:
        BenchmarkError: The process failed; the message has its last line.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ldp-bench-") as folder:
            value = run_spec("benchmarks.scaling", spec, Path(folder))
    except BenchmarkError as error:
        raise BenchmarkError(
            f"expected a restored image of {size_text(spec.shape)} px, got none: {error}; choose a smaller --tile or "
            "--shape"
        ) from error
    return Point(**{**value, "shape": (value["shape"][0], value["shape"][1])})


def measure_here(spec: Spec) -> Point:
    """Restores a pair in this process, which did nothing else before."""
    from benchmarks.harness.machine import peak_memory, reset_peak_memory, resident_memory
    from ldp_runtime.deblurrer import Deblurrer

    deblurrer = Deblurrer.from_bundle(
        spec.bundle, backend=spec.backend, precision=spec.precision, threads=spec.threads, tile=spec.tile
    )
    before = resident_memory()
    left, right = sample_pair(spec.shape)
    reset_peak_memory()
    begin = time.perf_counter()
    result = deblurrer(left, right)
    seconds = time.perf_counter() - begin - result.timings["open"]
    peak = peak_memory()
    images = left.nbytes + right.nbytes + result.restored.nbytes
    return Point(
        shape=spec.shape,
        seconds=seconds,
        stages=result.timings,
        tiles=result.tiles,
        images=images,
        peak=peak,
        working=peak - images - before,
        backend=result.backend,
        precision=result.precision,
    )


def fits(points: Sequence[Point]) -> dict[str, dict[str, float] | None]:
    """Lines through seconds and through working bytes over megapixels; None with fewer than two sizes.

    Where two sizes or more are in tiles, working memory is fitted over those: in one piece it grows by design.

    Returns:
        For ``seconds`` and ``working``: ``a`` and ``b`` of ``a + b * megapixels``, and ``spread``: the largest over
        the smallest, less 1, of seconds per megapixel or of working bytes.
    """
    import numpy as np

    if len({point.shape for point in points}) < 2:
        return {"seconds": None, "working": None}
    tiled = [point for point in points if point.tiles > 1]
    bounded = tiled if len({point.shape for point in tiled}) > 1 else points
    found: dict[str, dict[str, float] | None] = {}
    for name, fitted, values in (
        ("seconds", points, np.array([point.seconds for point in points])),
        ("working", bounded, np.array([float(point.working) for point in bounded])),
    ):
        megapixels = np.array([point.shape[0] * point.shape[1] / 1e6 for point in fitted])
        b, a = np.polyfit(megapixels, values, 1)
        per = values / megapixels if name == "seconds" else values
        found[name] = {"a": float(a), "b": float(b), "spread": float(per.max() / per.min() - 1)}
    return found


def measure_seams(
    bundle: Bundle,
    halos: Sequence[int] = SEAM_HALOS,
    *,
    shape: tuple[int, int] = SEAM_SHAPE,
    tile: int = SEAM_TILE,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """The difference between the sample in tiles and in one piece, in FP32 by ONNX Runtime.

    Args:
        bundle: The bundle; a network with global attention differs by more than seams.
        halos: Least px that neighbours share on each side of a seam.
        shape: Size of the sample, repeated or cut, in px.
        tile: Longest side of a tile in px, where the halo allows it.
        threads: CPU threads; None is the backend's own choice.

    Returns:
        For each halo the tiles' size and number, and the largest and the root-mean-square difference of the
        restored image before it is rounded, in units of 1/255.
    """
    import numpy as np

    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.registry import SESSION_BACKENDS
    from ldp_runtime.stages.blend import TileBlender
    from ldp_runtime.stages.pixels import PaddedPair
    from ldp_runtime.stages.tiles import TileGrid, least_side, tile_multiple

    manifest = bundle.manifest
    cell = manifest.blur_cell
    multiple = tile_multiple(manifest.network, manifest.padding.multiple, cell)
    left, right = sample_pair(shape)
    logits = (
        Deblurrer(bundle, backend="onnxruntime", precision="fp32", threads=threads).blur_map(left, right).blur_logits
    )
    padded = PaddedPair(left, right, manifest.padding.padded_size(*shape))
    session = SESSION_BACKENDS["onnxruntime"].open(bundle.graph("deblur"), "fp32", threads)

    def restored(y: int, x: int, height: int, width: int) -> NDArray[Any]:
        part = logits[y // cell : (y + height) // cell, x // cell : (x + width) // cell]
        feeds = {
            "pair": padded.region(y, x, height, width)[None],
            "blur_logits": np.ascontiguousarray(part)[None, None],
        }
        return session.run(feeds)["restored"][0]

    whole = restored(0, 0, *padded.size)
    found = []
    for halo in halos:
        grid = TileGrid.even(*padded.size, max(tile, least_side(multiple, halo)), multiple=multiple, halo=halo)
        if grid is None or len(grid) == 1:
            continue
        blender = TileBlender(grid)
        largest, squares = 0.0, 0.0
        for y, x in grid.origins():
            (top, start), block = blender.add(restored(y, x, *grid.tile))
            error = 255 * (block - whole[:, top : top + block.shape[1], start : start + block.shape[2]])
            largest = max(largest, float(np.abs(error).max()))
            squares += float(np.square(error, dtype=np.float64).sum())
        rms = float(np.sqrt(squares / whole.size))
        found.append({"halo": halo, "tile": list(grid.tile), "tiles": len(grid), "max": largest, "rms": rms})
    return found


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title.

    Args:
        report: Of kind "scaling".
    """
    data = report.data
    points = data["points"]
    rows = []
    for point in points:
        pixels = point["shape"][0] * point["shape"][1]
        rows.append(
            [
                size_text(point["shape"]),
                f"{pixels / 1e6:.1f}",
                point["tiles"],
                significant(point["seconds"]),
                significant(point["seconds"] / pixels * 1e9),
                *(mebibytes(point[key]) for key in ("images", "working", "peak")),
            ]
        )
    header = ["px", "megapixels", "tiles", "seconds", "ns per px", "images MiB", "working MiB", "peak MiB"]
    ran = ", ".join(dict.fromkeys(f"{point['backend']} {point['precision']}" for point in points))
    parts = [f"# Scaling of {report.name}", f"{ran}, tiles: {data['tile']}.", markdown_table(header, rows)]
    seconds, working = data["fits"]["seconds"], data["fits"]["working"]
    if seconds is not None and working is not None:
        parts.append(
            f"Fitted: {seconds['a']:.2f} s + {seconds['b']:.3f} s per megapixel, with the same time per px to within "
            f"{100 * seconds['spread']:.0f} %; {working['a'] / 2**20:.0f} MiB + {working['b'] / 2**20:.2f} MiB per "
            f"megapixel of working memory, the same to within {100 * working['spread']:.0f} %."
        )
    if data["seams"]:
        table = [
            [
                seam["halo"],
                f"{seam['tiles']} of {seam['tile'][1]} x {seam['tile'][0]}",
                significant(seam["max"]),
                significant(seam["rms"], 2),
            ]
            for seam in data["seams"]
        ]
        parts.append("Seams: the image in tiles beside that in one piece, FP32, before rounding, in units of 1/255.")
        parts.append(markdown_table(["halo px", "tiles", "largest", "RMS"], table))
    loads = load_text(data["load_average"])
    parts.append(
        "Each size is restored once, in a process of its own. Working memory is the peak beyond the images and "
        f"the loaded bundle. Load average before and after: {loads}."
    )
    return "\n\n".join(parts)


def answer(fields: dict[str, Any]) -> dict[str, Any]:
    """Measures a ``Spec`` in this process; returns the fields of a ``Point``."""
    return asdict(measure_here(Spec(**{**fields, "shape": tuple(fields["shape"])})))


if __name__ == "__main__":
    answer_spec(answer)
