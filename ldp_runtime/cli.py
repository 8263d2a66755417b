"""The command line ``ldp``: ``deblur``, ``blur-map`` and ``info``.

Everything heavy is imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.command import run
from ldp_runtime.errors import ImageError, LDPError

if TYPE_CHECKING:
    import numpy as np

    from ldp_runtime.image_io import Photo
    from ldp_runtime.pipeline import BlurMapResult, Deblurrer, Result

_Quality = dict[str, dict[str, float | None]]
"""Image -> "psnr_db" (None: infinite, the images are equal) and "ssim" (None: the images are too small)."""

MATCH_THRESHOLD = 0.5
"""Views that correlate less are taken for different photos. Of 380 pairs of unrelated photos (scikit-image's)
99 % correlate less; each photo correlates more than 0.6 with itself when one copy is shifted by 5 % of the
width, both are blurred over twice that shift, and noise of 3 % is added."""

_EXIT_CODES = """\
exit codes:
  0    done
  2    something to mend: a file, an option or the installation; one line on stderr says what
  1    a bug in ldp; please report it
  130  interrupted with Ctrl-C
No output file is left behind unless the exit code is 0.
"""

_DEBLUR_EXAMPLES = """\
examples:
  ldp deblur left.png right.png -o sharp.png
  ldp deblur left.tif right.tif -o sharp.tif --blur-map blur.png --compare before-after.jpg
  ldp deblur left.png right.png -o sharp.png --target truth.png --json
  ldp deblur top.png bottom.png -o sharp.png --axis vertical

OUT has the format of its suffix (.png, .tif, .tiff, .jpg, .jpeg) and the
depth, ICC profile, EXIF data, alpha and greyness of LEFT; it is upright (the
EXIF orientation is applied). An existing OUT is replaced.

"""

_BLUR_MAP_EXAMPLES = """\
examples:
  ldp blur-map left.png right.png -o blur.png
  ldp blur-map left.png right.png -o blur.npy

A picture shows the map in colour, dark where it is sharp and light where it is
blurred; .npy holds its numbers, an array (h, w) of float32 from 0 (sharp) to 1
(blurred). An existing OUT is replaced.

"""

_INFO_EXAMPLES = """\
examples:
  ldp info
  ldp info --json

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    # One clear line is ours to give; the libraries' own remarks on damaged files would only add to it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        return run("ldp", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    from ldp_runtime.backends import BACKENDS, PRECISIONS

    parser = argparse.ArgumentParser(
        prog="ldp",
        description="Turns a blurred dual-pixel photo pair into an all-in-focus image.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ldp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str, examples: str) -> Any:
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=examples + _EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        added.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        return added

    def pair_command(name: str, run: Callable[[argparse.Namespace], None], help: str, examples: str) -> Any:
        added = command(name, run, help, examples)
        added.add_argument("left", metavar="LEFT", help="left view: PNG, TIFF or JPEG, 8 or 16 bits")
        added.add_argument("right", metavar="RIGHT", help="right view, of the same size and depth")
        added.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
        added.add_argument(
            "--bundle",
            default="ldp-nano",
            metavar="NAME|DIR",
            help="model bundle: a name that `ldp info` lists, or a folder (default: %(default)s)",
        )
        added.add_argument(
            "--backend",
            default="auto",
            choices=("auto", *BACKENDS),
            help="what runs the networks (default: auto, the fastest that works)",
        )
        added.add_argument(
            "--precision",
            default="auto",
            choices=("auto", *PRECISIONS),
            help="arithmetic of the networks (default: auto, the backend's own)",
        )
        added.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the backend's choice)")
        added.add_argument(
            "--axis",
            default="horizontal",
            choices=("horizontal", "vertical"),
            help="how the sensor splits its pixels: vertical for top (LEFT) and bottom (RIGHT); a camera "
            "that was turned is known from EXIF (default: %(default)s)",
        )
        added.add_argument("--swap", action="store_true", help="take LEFT for the right view and RIGHT for the left")
        added.add_argument("-q", "--quiet", action="store_true", help="print only warnings and errors")
        return added

    deblur = pair_command("deblur", _deblur, "Restores a pair: everything in focus.", _DEBLUR_EXAMPLES)
    deblur.add_argument("--blur-map", metavar="PATH", help="also write the blur map (picture or .npy)")
    deblur.add_argument("--compare", metavar="PATH", help="also write a picture of before, after and blur map")
    deblur.add_argument(
        "--target",
        metavar="PATH",
        help="the sharp photo; prints PSNR and SSIM of the center view (the mean of both views) and of the "
        "restored image against it",
    )
    pair_command("blur-map", _blur_map, "Shows where a pair is blurred.", _BLUR_MAP_EXAMPLES)
    command("info", _info, "Lists versions, CPU, backends and bundles.", _INFO_EXAMPLES)
    return parser


# --- commands -----------------------------------------------------------------------------------------------


def _deblur(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from ldp_runtime import image_io

    report = _Report(arguments)
    inputs = [arguments.left, arguments.right, *([arguments.target] if arguments.target else [])]
    outputs = [p for p in (arguments.output, arguments.blur_map, arguments.compare) if p is not None]
    image_io.image_format(arguments.output)
    if arguments.blur_map is not None:
        _check_blur_map_name(arguments.blur_map)
    if arguments.compare is not None:
        image_io.image_format(arguments.compare)
    _check_outputs(inputs, outputs)

    with report.stage("read"):
        left, right, axis = _read_pair(arguments, report)
        image_io.check_format(arguments.output, left)
        target = _read_target(arguments.target, left) if arguments.target else None
    with report.stage("load"):
        deblurrer = _load(arguments)
    result = deblurrer(left.pixels, right.pixels, axis=axis)
    report.add_result(deblurrer, result)

    quality = _quality(left, right, result.restored, target) if target is not None else None
    with report.stage("write"):
        contents = {arguments.output: image_io.encode_photo(arguments.output, replace(left, pixels=result.restored))}
        if arguments.blur_map is not None:
            contents[arguments.blur_map] = _encode_blur_map(arguments.blur_map, result.blur_map)
        if arguments.compare is not None:
            contents[arguments.compare] = _encode_comparison(arguments.compare, left, right, result, target, quality)
        image_io.write_files(contents)
    written = {"restored": arguments.output, "blur_map": arguments.blur_map, "compare": arguments.compare}
    report.fields["outputs"] = {name: path for name, path in written.items() if path is not None}
    if quality is not None:
        report.fields["quality"] = quality
    report.print()


def _blur_map(arguments: argparse.Namespace) -> None:
    from ldp_runtime import image_io

    report = _Report(arguments)
    _check_blur_map_name(arguments.output)
    _check_outputs([arguments.left, arguments.right], [arguments.output])
    with report.stage("read"):
        left, right, axis = _read_pair(arguments, report)
    with report.stage("load"):
        deblurrer = _load(arguments)
    result = deblurrer.blur_map(left.pixels, right.pixels, axis=axis)
    report.add_result(deblurrer, result)
    with report.stage("write"):
        image_io.write_files({arguments.output: _encode_blur_map(arguments.output, result.blur_map)})
    report.fields["outputs"] = {"blur_map": arguments.output}
    report.print()


def _info(arguments: argparse.Namespace) -> None:
    import platform
    from importlib import metadata

    from ldp_runtime.backends import BACKENDS, select
    from ldp_runtime.bundle import list_bundles, read_manifest, search_folders

    versions = {"ldp": __version__, "python": platform.python_version()}
    for package in ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "pillow", "tifffile"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"

    backends: dict[str, dict[str, Any]] = {}
    for name, backend in BACKENDS.items():
        try:
            backend.available()
            backends[name] = {
                "available": True,
                "device": backend.describe(),
                "precisions": list(backend.precisions),
            }
        except LDPError as error:
            backends[name] = {"available": False, "reason": str(error)}
    try:
        auto = select()[1]
    except LDPError as error:
        auto = str(error)

    bundles: dict[str, dict[str, Any]] = {}
    for name, folder in list_bundles().items():
        try:
            manifest = read_manifest(folder)
        except LDPError as error:
            bundles[name] = {"path": str(folder), "error": str(error)}
        else:
            bundles[name] = {
                "path": str(folder),
                "created": manifest.created,
                "clip": manifest.clip.architecture,
                "graphs": sorted({p for graphs in manifest.graphs.values() for p in graphs}),
            }

    cpu = _cpu()
    fields = {
        "versions": versions,
        "system": platform.platform(),
        "cpu": cpu,
        "backends": backends,
        "auto": auto,
        "bundles": bundles,
        "bundle_folders": [str(folder) for folder in search_folders()],
    }
    if arguments.json:
        print(json.dumps(fields, indent=2))
        return
    print("versions   " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"system     {fields['system']}")
    print(f"cpu        {cpu['name']}, {cpu['threads']} threads; {', '.join(cpu['features']) or 'unknown'}")
    print("backends")
    for name, found in backends.items():
        if found["available"]:
            print(f"  {name:21}{found['device']}; {', '.join(found['precisions'])}")
        else:
            print(f"  {name:21}not available: {found['reason']}")
    print(f"  {'auto':21}{auto}")
    print("bundles" if bundles else f"bundles    none in {', '.join(fields['bundle_folders'])}")
    for name, found in bundles.items():
        print(f"  {name:21}{found['path']}" + (f": {found['error']}" if "error" in found else ""))


# --- parts --------------------------------------------------------------------------------------------------


class _Report:
    """What a command tells about its run, as lines for people or as one JSON object."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.fields: dict[str, Any] = {"version": __version__, "warnings": []}
        self._seconds: dict[str, float] = {}

    def warn(self, text: str) -> None:
        """Prints a warning on stderr and keeps it."""
        self.fields["warnings"].append(text)
        print(f"ldp: warning: {text}", file=sys.stderr)

    def stage(self, name: str) -> _Stage:
        """Times a ``with`` block."""
        return _Stage(self._seconds, name)

    def add_result(self, deblurrer: Deblurrer, result: BlurMapResult) -> None:
        """Keeps what ran and how long it took."""
        self.fields |= {
            "bundle": deblurrer.bundle.manifest.name,
            "bundle_path": str(deblurrer.bundle.path),
            "backend": result.backend,
            "precision": result.precision,
            "reason": deblurrer.reason,
        }
        self._seconds |= result.timings

    def print(self) -> None:
        """Prints the report, as the options ask."""
        self.fields["seconds"] = {name: round(value, 6) for name, value in self._seconds.items()}
        if self._arguments.json:
            print(json.dumps(self.fields, indent=2, allow_nan=False))
        elif not self._arguments.quiet:
            print("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        fields = self.fields
        lines = [
            f"bundle   {fields['bundle']} ({fields['bundle_path']})",
            f"backend  {fields['reason']}",
            "pair     {width} x {height} px, {bits} bits, {axis} disparity".format(**fields),
        ]
        lines += [f"  {name:12}{value:8.3f} s" for name, value in self._seconds.items()]
        lines.append(f"  {'total':12}{sum(self._seconds.values()):8.3f} s")
        for name, value in fields.get("quality", {}).items():
            lines.append(f"{name.replace('_', ' '):12} {_quality_text(value)}")
        lines += [f"wrote    {path}" for path in fields["outputs"].values()]
        return lines


class _Stage:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


def _load(arguments: argparse.Namespace) -> Deblurrer:
    from ldp_runtime.pipeline import Deblurrer

    return Deblurrer.from_bundle(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
    )


def _check_blur_map_name(path: str) -> None:
    from ldp_runtime.image_io import image_format

    if Path(path).suffix.lower() != ".npy":
        image_format(path)


def _check_outputs(inputs: list[str], outputs: list[str]) -> None:
    """Refuses, before anything is computed, what could not be written or would destroy an input."""
    from ldp_runtime.image_io import check_writable

    seen: dict[str, str] = {}
    for output in outputs:
        for name in inputs:
            if os.path.exists(output) and os.path.exists(name) and os.path.samefile(output, name):
                raise ImageError(f"{output} is an input, which would be lost; choose another name to write to")
        real = os.path.realpath(output)
        if real in seen:
            raise ImageError(f"{output} and {seen[real]} are one file; choose a name for each output")
        seen[real] = output
        check_writable(output)


def _read_pair(arguments: argparse.Namespace, report: _Report) -> tuple[Photo, Photo, str]:
    """Reads and checks both views.

    Returns:
        The left and the right view of the upright picture, the left with the metadata to keep; and the axis.
    """
    from dataclasses import replace

    import numpy as np

    from ldp_runtime.image_io import read_photo, upright_disparity
    from ldp_runtime.quality import view_correlation

    names = (arguments.right, arguments.left) if arguments.swap else (arguments.left, arguments.right)
    left, right = (read_photo(name) for name in names)
    if left.orientation != right.orientation:
        raise ImageError(
            f"{names[0]} has EXIF orientation {left.orientation} and {names[1]} has {right.orientation}; "
            "expected two views of one photo: give both files the same orientation tag"
        )
    _check_like(names[1], right, names[0], left)
    if np.array_equal(left.pixels, right.pixels):
        report.warn(
            f"{names[0]} and {names[1]} hold the same picture, so there is no disparity to restore from; "
            "give the two views of a dual-pixel pair"
        )
    else:
        correlation = view_correlation(left.pixels, right.pixels)
        if correlation < MATCH_THRESHOLD:
            report.warn(
                f"{names[0]} and {names[1]} do not look like two views of one photo (correlation "
                f"{correlation:.2f}, expected at least {MATCH_THRESHOLD}); check that they belong together"
            )
    axis, mirrored = upright_disparity(arguments.axis, left.orientation)
    if mirrored:
        left, right = replace(left, pixels=right.pixels), replace(right, pixels=left.pixels)
    height, width = left.pixels.shape[:2]
    report.fields |= {"width": width, "height": height, "bits": 8 * left.pixels.dtype.itemsize, "axis": axis}
    return left, right, axis


def _read_target(name: str, left: Photo) -> Photo:
    from ldp_runtime.image_io import read_photo

    target = read_photo(name)
    _check_like(name, target, "the views", left)
    return target


def _check_like(name: str, photo: Photo, other: str, expected: Photo) -> None:
    """Checks that a photo has the size and depth of another."""
    (h, w), (expected_h, expected_w) = photo.pixels.shape[:2], expected.pixels.shape[:2]
    if (h, w) != (expected_h, expected_w):
        raise ImageError(
            f"{name} is {w} x {h} px; expected {expected_w} x {expected_h} px as {other}: crop or scale "
            "neither, or all alike"
        )
    if photo.pixels.dtype != expected.pixels.dtype:
        bits, expected_bits = (8 * p.pixels.dtype.itemsize for p in (photo, expected))
        raise ImageError(f"{name} has {bits} bits; expected {expected_bits} as {other}: export all with the same depth")


def _quality(left: Photo, right: Photo, restored: np.ndarray, target: Photo) -> _Quality:
    """PSNR and SSIM of the center view and of the restored image."""
    import numpy as np

    from ldp_runtime import quality

    data_range = float(np.iinfo(restored.dtype).max)
    images = {"center_view": quality.center_view(left.pixels, right.pixels), "restored": restored}
    values: _Quality = {}
    for name, image in images.items():
        psnr = quality.psnr(image, target.pixels, data_range=data_range)
        large = min(restored.shape[:2]) >= quality.SSIM_WINDOW
        values[name] = {
            "psnr_db": psnr if math.isfinite(psnr) else None,
            "ssim": quality.ssim(image, target.pixels, data_range=data_range) if large else None,
        }
    return values


def _quality_text(value: dict[str, float | None]) -> str:
    psnr = "equal to the target" if value["psnr_db"] is None else f"PSNR {value['psnr_db']:.2f} dB"
    return psnr if value["ssim"] is None else f"{psnr}, SSIM {value['ssim']:.4f}"


def _encode_blur_map(path: str, blur_map: np.ndarray) -> bytes:
    """Encodes a blur map ``(h, w)`` by the suffix: numbers as .npy, otherwise a colour picture."""
    import numpy as np

    from ldp_runtime.image_io import Photo, encode_photo
    from ldp_runtime.visualize import colour_blur_map

    if Path(path).suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, blur_map)
        return buffer.getvalue()
    return encode_photo(path, Photo(colour_blur_map(blur_map)))


def _encode_comparison(
    path: str,
    left: Photo,
    right: Photo,
    result: Result,
    target: Photo | None,
    quality: _Quality | None,
) -> bytes:
    import numpy as np

    from ldp_runtime.image_io import Photo, encode_photo
    from ldp_runtime.quality import center_view
    from ldp_runtime.visualize import colour_blur_map, comparison

    def label(name: str, key: str) -> str:
        return name if quality is None else f"{name}: {_quality_text(quality[key])}"

    center = np.rint(center_view(left.pixels, right.pixels)).astype(left.pixels.dtype)
    panels = {
        label("Center view", "center_view"): center,
        label("Restored", "restored"): result.restored,
        "Blur map (light: blurred)": colour_blur_map(result.blur_map),
    }
    if target is not None:
        panels["Target"] = target.pixels
    # The profile of a grey photo does not fit a colour picture.
    return encode_photo(path, Photo(comparison(panels), icc_profile=None if left.grey else left.icc_profile))


def _cpu() -> dict[str, Any]:
    """Name, threads, and those features that matter to the backends, as far as the system tells."""
    import platform

    name, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    wanted = (
        "avx2",
        "fma",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_bf16",
        "asimd",
        "bf16",
    )
    return {
        "name": name,
        "threads": os.cpu_count(),
        "features": [flag for flag in wanted if flag in flags],
    }
