"""``ldp-export simulate``: simulates a pair."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_export.commands._parts import ArgumentError, Progress, check_folder, write_pair
from ldp_runtime import __version__
from ldp_runtime.commands.options import parse_seed

if TYPE_CHECKING:
    from ldp_export.simulation.optics import FloatArray, HalfAperturePSF
    from ldp_export.simulation.simulate import SensorNoise

LARGEST_RADIUS = 32.0
"""Circles of confusion with a larger radius in px would take minutes to render and are mostly a mistake in a unit."""

HELP = "Simulates a pair from an image and a map."
EXAMPLES = """\
examples:
  ldp-export simulate sharp.png -o pair --disparity disparity.pfm --focus-percentile 80
  ldp-export simulate sharp.png -o pair --disparity disparity.npy --focus-disparity 42 --max-coc 4 --noise 5e-5,5e-4
  ldp-export simulate sharp.tif -o pair --depth depth.tif --focal-length 50 --f-number 1.8 \\
      --focus-distance 1500 --pixel-pitch 5.4
  ldp-export simulate sharp.png -o pair --disparity disparity.npy --separation 0.42

Writes left.png, right.png, target.png, coc.npy (signed radius of the circle of
confusion in px, positive behind the focal plane) and simulate.json into DIR.
A map is .npy, .pfm, a 16-bit PNG or a float TIFF of the image's size. Larger
disparity is nearer; its unit does not matter. Depth is in millimetres. Holes
(zero, negative, NaN; infinite disparity) are filled from what lies behind.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the all-in-focus image: PNG, TIFF or JPEG")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    map_ = parser.add_mutually_exclusive_group(required=True)
    map_.add_argument("--disparity", type=Path, metavar="MAP", help="stereo disparity; the CoC is scaled to --max-coc")
    map_.add_argument("--depth", type=Path, metavar="MAP", help="depth in mm; the CoC is that of the lens given below")
    focus = parser.add_argument_group("with --disparity").add_mutually_exclusive_group()
    focus.add_argument("--focus-disparity", type=float, metavar="D", help="the disparity that is in focus")
    focus.add_argument("--focus-percentile", type=float, metavar="P", help="the same as a percentile (default: 50)")
    parser.add_argument("--max-coc", type=float, metavar="PX", help="with --disparity: largest CoC radius (default: 6)")
    lens = parser.add_argument_group("with --depth")
    lens.add_argument("--focal-length", type=float, metavar="MM")
    lens.add_argument("--f-number", type=float, metavar="N")
    lens.add_argument("--focus-distance", type=float, metavar="MM", help="from the lens to the plane in focus")
    lens.add_argument("--pixel-pitch", type=float, metavar="UM", help="in micrometres")
    sensor = parser.add_argument_group("the sensor")
    sensor.add_argument("--bits", type=int, choices=(8, 16), help="of the views (default: those of IMAGE)")
    sensor.add_argument("--noise", metavar="SHOT,READ", help="variance is SHOT * signal + READ^2 (default: none)")
    sensor.add_argument("--seed", type=parse_seed, default=0, help="of the noise (default: 0)")
    psf = parser.add_argument_group("the point spread function")
    psf.add_argument("--psf-order", type=float, metavar="N", help="Butterworth order, large is hard (default: 8)")
    psf.add_argument("--psf-softness", type=float, metavar="S", help="width of the split, in radii (default: 0.12)")
    split = psf.add_mutually_exclusive_group()
    split.add_argument(
        "--separation",
        type=float,
        metavar="S",
        help="distance of the centroids of the views over the radius, as ldp-export measure-psf prints it "
        "(default: 0.45)",
    )
    split.add_argument("--psf-crosstalk", type=float, metavar="C", help="the same as light from the wrong half")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from dataclasses import asdict

    import numpy as np

    from ldp_export.simulation.maps import read_map
    from ldp_export.simulation.simulate import simulate_pair
    from ldp_runtime.images.photo import read_photo

    psf, noise = _psf(arguments), _noise(arguments.noise)
    _check_map_options(arguments)
    check_folder(arguments.output, "simulate.json")
    photo = read_photo(arguments.image)
    size = photo.pixels.shape[:2]
    path = arguments.disparity or arguments.depth
    coc, optics = _coc_of(arguments, read_map(path, (size[0], size[1])))
    largest = float(np.abs(coc).max())
    if largest > LARGEST_RADIUS:
        raise ArgumentError(
            f"expected circles of confusion of at most {LARGEST_RADIUS:g} px radius, got {largest:.1f}; "
            "check the units, close the aperture or scale the image down"
        )
    bits = arguments.bits or 8 * photo.pixels.dtype.itemsize
    pair = simulate_pair(
        photo.pixels, coc, psf=psf, noise=noise, seed=arguments.seed, bits=bits, progress=Progress("layers")
    )
    record = {
        "image": arguments.image.name,
        "map": path.name,
        **optics,
        "psf": asdict(psf),
        "noise": asdict(noise),
        "seed": arguments.seed,
        "bits": bits,
        "ldp": __version__,
    }
    write_pair(arguments.output, pair.left, pair.right, pair.target, pair.coc, "simulate.json", record)
    print(f"{arguments.output}: CoC radius from {coc.min():.2f} to {coc.max():.2f} px")


def _check_map_options(arguments: argparse.Namespace) -> None:
    """Options of one kind of map beside the other kind are a mistake, not something to ignore."""
    lens = ("focal_length", "f_number", "focus_distance", "pixel_pitch")
    scaled = ("focus_disparity", "focus_percentile", "max_coc")
    wrong, kind = (scaled, "--disparity") if arguments.depth else (lens, "--depth")
    given = [f"--{name.replace('_', '-')}" for name in wrong if getattr(arguments, name) is not None]
    if given:
        raise ArgumentError(f"expected {', '.join(given)} with {kind} alone; leave it out")
    missing = [f"--{name.replace('_', '-')}" for name in lens if getattr(arguments, name) is None]
    if arguments.depth and missing:
        raise ArgumentError(f"expected the whole lens with --depth; add {', '.join(missing)}")


def _coc_of(arguments: argparse.Namespace, values: FloatArray) -> tuple[FloatArray, dict[str, Any]]:
    """Signed CoC radius ``(h, w)`` in px of the map, and what it was computed from."""
    from dataclasses import asdict

    import numpy as np

    from ldp_export.simulation.maps import fill_depth_holes, fill_disparity_holes
    from ldp_export.simulation.optics import ThinLens, coc_from_disparity

    if arguments.depth:
        lens = ThinLens(arguments.focal_length, arguments.f_number, arguments.focus_distance, arguments.pixel_pitch)
        return lens.coc_radius(fill_depth_holes(values)), {"lens": asdict(lens)}
    disparity = fill_disparity_holes(values)
    percentile = 50.0 if arguments.focus_percentile is None else arguments.focus_percentile
    if not 0 <= percentile <= 100:
        raise ArgumentError(f"expected --focus-percentile from 0 to 100, got {percentile:g}")
    radius = 6.0 if arguments.max_coc is None else arguments.max_coc
    if not 0 < radius < float("inf"):
        raise ArgumentError(f"expected --max-coc above zero, got {radius:g}")
    focus = arguments.focus_disparity
    at = float(np.percentile(disparity, percentile)) if focus is None else float(focus)
    return coc_from_disparity(disparity, at, radius), {"focus_disparity": at, "max_coc": radius}


def _psf(arguments: argparse.Namespace) -> HalfAperturePSF:
    from ldp_export.simulation.optics import HalfAperturePSF

    given = {name: getattr(arguments, f"psf_{name}") for name in ("order", "softness", "crosstalk")}
    psf = HalfAperturePSF(**{name: value for name, value in given.items() if value is not None})
    if not 0.5 <= psf.order <= 1000:
        raise ArgumentError(f"expected --psf-order from 0.5 to 1000, got {psf.order:g}")
    if not 0 <= psf.softness <= 10:
        raise ArgumentError(f"expected --psf-softness from 0 to 10, got {psf.softness:g}")
    if not 0 <= psf.crosstalk < 0.5:
        raise ArgumentError(f"expected --psf-crosstalk from 0 to below 0.5, got {psf.crosstalk:g}")
    return psf if arguments.separation is None else psf.with_separation(arguments.separation)


def _noise(text: str | None) -> SensorNoise:
    from ldp_export.simulation.simulate import NOISE_FREE, SensorNoise

    if text is None:
        return NOISE_FREE
    try:
        shot, read = (float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"expected --noise as two numbers SHOT,READ, such as 5e-5,5e-4, got {text!r}") from None
    if not (0 <= shot < 1 and 0 <= read < 1):
        raise ArgumentError(f"expected --noise with numbers from 0 to below 1, got {text!r}")
    return SensorNoise(shot, read)
