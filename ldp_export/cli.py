"""The command line ``ldp-export``: ``onnx``, ``evaluate``, ``calibrate``, ``simulate`` and ``sample``.

Everything heavy is imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldp_runtime import __version__
from ldp_runtime.command import CheckFailedError, run
from ldp_runtime.errors import LDPError

if TYPE_CHECKING:
    import numpy as np

    from ldp_export.simulate import FloatArray, HalfAperturePSF, SensorNoise


CONFIG_NAMES = ("nano", "small", "large")
FOCUS_NAMES = ("near", "far")
LARGEST_RADIUS = 32.0
"""Circles of confusion with a larger radius in px would take minutes to render and are mostly a mistake in a unit."""

_EXIT_CODES = """\
exit codes:
  0    done
  1    a check failed (its line on stderr says which), or a bug
  2    something to mend: a file, an option or the installation; one line on stderr says what
  130  interrupted with Ctrl-C
"""

_WINDOW_HELP = "side of CLIP's windows (default: the checkpoint's, or 448)"

T = TypeVar("T")


class ArgumentError(LDPError):
    """Options that do not fit together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    return run("ldp-export", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldp-export",
        description="Builds, checks and calibrates what `ldp` runs; simulates dual-pixel pairs.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ldp-export {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str, more: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"{more}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    _add_onnx(command("onnx", _onnx, "Exports a bundle and checks its parity with torch.", _ONNX_MORE))
    _add_evaluate(command("evaluate", _evaluate, "Scores a bundle on the held-out motorcycle sample.", _EVALUATE_MORE))
    _add_calibrate(command("calibrate", _calibrate, "Fits offset and temperature of each prompt.", _CALIBRATE_MORE))
    _add_simulate(command("simulate", _simulate, "Simulates a pair from an image and a map.", _SIMULATE_MORE))
    _add_sample(command("sample", _sample, "Writes the held-out motorcycle sample.", _SAMPLE_MORE))
    return parser


# --- onnx -----------------------------------------------------------------------------------------------------

_ONNX_MORE = """\
examples:
  ldp-export onnx models/checkpoints/ldp-nano -o models/ldp-nano
  ldp-export onnx --config small --clip ViT-B-32-quickgelu -o bundles/small-random
  ldp-export onnx --config large --clip ViT-B-32-quickgelu --clip-weights openai -o bundles/large

CHECKPOINT is a folder with network.json, deblur.safetensors, clip.json,
clip.safetensors, calibration.json and training.json. With --config the
network's weights are random: such a bundle checks the chain of export, engines
and runtime, and restores nothing.

The graphs are compared with torch, and the figures go into the manifest. If a
check fails nothing is written and the exit code is 1.
"""


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="folder of a trained model")
    source.add_argument("--config", choices=CONFIG_NAMES, help="a network with random weights instead")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: that of its folder)")
    parser.add_argument(
        "--clip", metavar="ARCHITECTURE", help="with --config: open_clip's name of a ViT, or a .json file"
    )
    parser.add_argument(
        "--clip-weights",
        metavar="FILE|TAG",
        help="with --clip: its weights, a file or a tag to download (default: random)",
    )
    parser.add_argument("--window", type=int, metavar="PX", help=_WINDOW_HELP)
    parser.add_argument(
        "--overlap", type=int, metavar="PX", help="what windows share (default: the checkpoint's, or a quarter of one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="with --config: of the random weights (default: 0)")


def _onnx(arguments: argparse.Namespace) -> None:
    if arguments.config is None and (arguments.clip or arguments.clip_weights):
        raise ArgumentError("expected --clip with --config, came a CHECKPOINT, which has its own CLIP; leave it out")
    if arguments.config is not None and not arguments.clip:
        raise ArgumentError("expected --clip with --config, came none; the paper's is ViT-B-32-quickgelu")
    _check_folder(arguments.output, "bundle.json")

    from ldp_export.checkpoint import Checkpoint
    from ldp_export.onnx_export import ParityError, export_bundle, model_from_checkpoint, random_model

    if arguments.config is None:
        model = model_from_checkpoint(Checkpoint.open(arguments.checkpoint), arguments.window, arguments.overlap)
    else:
        model = random_model(
            arguments.config,
            arguments.clip,
            arguments.clip_weights,
            window=arguments.window,
            overlap=arguments.overlap,
            seed=arguments.seed,
        )
    name = arguments.name or model.training.get("name") or arguments.output.absolute().name
    try:
        manifest = export_bundle(model, arguments.output, str(name), report=_say)
    except ParityError as error:
        raise CheckFailedError(f"{error}; nothing was written") from error
    _print_gates(manifest.parity)
    size = sum(entry.size for entry in manifest.files.values()) / 2**20
    print(f"{arguments.output}: {len(manifest.files)} files, {size:.1f} MiB")


def _print_gates(parity: Mapping[str, Any]) -> None:
    for gate in parity.get("gates", ()):
        print(f"{gate['name']:44}{gate['value']:<14.5g}{gate['is']} {gate['limit']:g}")


# --- evaluate -------------------------------------------------------------------------------------------------

_EVALUATE_MORE = """\
examples:
  ldp-export evaluate models/ldp-nano
  ldp-export evaluate models/ldp-nano --pictures looks --json figures.json
  ldp-export evaluate models/ldp-nano --store

The first run renders two pairs under the second simulator, half a minute each,
and keeps them in the cache folder. The exit code is 1 if a figure is not as
wanted.
"""


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from ldp_runtime.backends import BACKENDS, PRECISIONS

    parser.add_argument("bundle", metavar="BUNDLE", help="a name that `ldp info` lists, or a folder")
    parser.add_argument(
        "--backend", default="auto", choices=("auto", *BACKENDS), help="what runs the networks (default: auto)"
    )
    parser.add_argument(
        "--precision", default="auto", choices=("auto", *PRECISIONS), help="their arithmetic (default: its own)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the backend's choice)")
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the figures as JSON")
    parser.add_argument("--pictures", metavar="DIR", type=Path, help="also write the images behind the figures")
    parser.add_argument("--store", action="store_true", help="write the figures into the bundle's manifest")


def _evaluate(arguments: argparse.Namespace) -> None:
    from ldp_export.evaluate import evaluate, store
    from ldp_runtime.image_io import check_writable, write_files
    from ldp_runtime.pipeline import Deblurrer

    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.pictures is not None:
        _make_folder(arguments.pictures)
    deblurrer = Deblurrer.from_bundle(
        arguments.bundle, backend=arguments.backend, precision=arguments.precision, threads=arguments.threads
    )
    evaluation = evaluate(deblurrer, pictures=arguments.pictures, report=_say)
    print(f"{deblurrer.bundle.manifest.name} on {evaluation.backend}, {evaluation.precision}")
    print(evaluation.table())
    print("parity with torch, measured at export:")
    _print_gates(deblurrer.bundle.manifest.parity)
    if arguments.json is not None:
        text = json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n"
        write_files({arguments.json: text.encode()})
    if arguments.store:
        store(deblurrer.bundle.path, evaluation)
    if not evaluation.passed:
        raise CheckFailedError(f"not as wanted: {', '.join(evaluation.to_json()['missed'])}")


# --- calibrate ------------------------------------------------------------------------------------------------

_CALIBRATE_MORE = """\
examples:
  ldp-export calibrate runs/clip --scenes runs/scenes
  ldp-export calibrate my-checkpoint --simulate

CHECKPOINT needs clip.json and clip.safetensors alone; calibration.json is
written there. --scenes reads the first shards scenes-NNNN.npz, which ldp-nano's
training holds out; --simulate renders pairs from scikit-image's photographs.
"""


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder with CLIP")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--scenes", type=Path, metavar="DIR", help="rendered scenes (models/recipes/ldp_nano/scenes.py)"
    )
    source.add_argument("--simulate", action="store_true", help="simulate pairs here")
    parser.add_argument("--window", type=int, metavar="PX", help=_WINDOW_HELP)
    parser.add_argument("--seed", type=int, default=0, help="with --simulate: of the pairs (default: 0)")


def _calibrate(arguments: argparse.Namespace) -> None:
    from ldp_export.calibrate import calibrate, load_scenes, simulate_scenes, token_similarities
    from ldp_export.checkpoint import Checkpoint, choose_windows

    checkpoint = Checkpoint.open(arguments.checkpoint)
    clip = checkpoint.clip()
    patch = clip.encoder.patch
    windows = checkpoint.windows(patch) if arguments.window is None else choose_windows(patch, arguments.window)
    scenes = simulate_scenes(seed=arguments.seed) if arguments.simulate else load_scenes(arguments.scenes)
    count = None if arguments.simulate else len(scenes)  # type: ignore[arg-type]
    calibration = calibrate(*token_similarities(clip, windows, scenes, _Progress("scenes", count)))
    checkpoint.write_prompts(calibration.prompts)
    print(calibration.table())


# --- simulate -------------------------------------------------------------------------------------------------

_SIMULATE_MORE = """\
examples:
  ldp-export simulate sharp.png -o pair --disparity disparity.pfm --focus-percentile 80
  ldp-export simulate sharp.png -o pair --disparity disparity.npy --focus-disparity 42 --max-coc 4 --noise 5e-5,5e-4
  ldp-export simulate sharp.tif -o pair --depth depth.tif --focal-length 50 --f-number 1.8 \\
      --focus-distance 1500 --pixel-pitch 5.4

Writes left.png, right.png, target.png, coc.npy (signed radius of the circle of
confusion in px, positive behind the focal plane) and simulate.json into DIR.
A map is .npy, .pfm, a 16-bit PNG or a float TIFF of the image's size. Larger
disparity is nearer; its unit does not matter. Depth is in millimetres. Holes
(zero, negative, NaN; infinite disparity) are filled from what lies behind.
"""


def _add_simulate(parser: argparse.ArgumentParser) -> None:
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
    sensor.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    psf = parser.add_argument_group("the point spread function")
    psf.add_argument("--psf-order", type=float, metavar="N", help="Butterworth order, large is hard (default: 8)")
    psf.add_argument("--psf-softness", type=float, metavar="S", help="width of the split, in radii (default: 0.12)")
    psf.add_argument("--psf-crosstalk", type=float, metavar="C", help="light from the wrong half (default: 0.03)")


def _simulate(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    import numpy as np

    from ldp_export.maps import read_map
    from ldp_export.simulate import simulate_pair
    from ldp_runtime.image_io import read_photo

    psf, noise = _psf(arguments), _noise(arguments.noise)
    _check_map_options(arguments)
    _check_folder(arguments.output, "simulate.json")
    photo = read_photo(arguments.image)
    size = photo.pixels.shape[:2]
    path = arguments.disparity or arguments.depth
    coc, optics = _coc_of(arguments, read_map(path, (size[0], size[1])))
    largest = float(np.abs(coc).max())
    if largest > LARGEST_RADIUS:
        raise ArgumentError(
            f"expected circles of confusion of at most {LARGEST_RADIUS:g} px radius, came {largest:.1f}; "
            "check the units, close the aperture or scale the image down"
        )
    bits = arguments.bits or 8 * photo.pixels.dtype.itemsize
    pair = simulate_pair(
        photo.pixels, coc, psf=psf, noise=noise, seed=arguments.seed, bits=bits, progress=_Progress("layers")
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
    _write_pair(arguments.output, pair.left, pair.right, pair.target, pair.coc, "simulate.json", record)
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
    """Signed CoC radius `(h, w)` in px of the map, and what it was computed from."""
    from dataclasses import asdict

    import numpy as np

    from ldp_export.maps import fill_depth_holes
    from ldp_export.simulate import ThinLens, coc_from_disparity, fill_disparity_holes

    if arguments.depth:
        lens = ThinLens(arguments.focal_length, arguments.f_number, arguments.focus_distance, arguments.pixel_pitch)
        return lens.coc_radius(fill_depth_holes(values)), {"lens": asdict(lens)}
    disparity = fill_disparity_holes(values)
    percentile = 50.0 if arguments.focus_percentile is None else arguments.focus_percentile
    if not 0 <= percentile <= 100:
        raise ArgumentError(f"expected --focus-percentile from 0 to 100, came {percentile:g}")
    radius = 6.0 if arguments.max_coc is None else arguments.max_coc
    if not 0 < radius < float("inf"):
        raise ArgumentError(f"expected --max-coc above zero, came {radius:g}")
    focus = arguments.focus_disparity
    at = float(np.percentile(disparity, percentile)) if focus is None else float(focus)
    return coc_from_disparity(disparity, at, radius), {"focus_disparity": at, "max_coc": radius}


def _psf(arguments: argparse.Namespace) -> HalfAperturePSF:
    from ldp_export.simulate import HalfAperturePSF

    given = {name: getattr(arguments, f"psf_{name}") for name in ("order", "softness", "crosstalk")}
    psf = HalfAperturePSF(**{name: value for name, value in given.items() if value is not None})
    if not 0.5 <= psf.order <= 1000:
        raise ArgumentError(f"expected --psf-order from 0.5 to 1000, came {psf.order:g}")
    if not 0 <= psf.softness <= 10:
        raise ArgumentError(f"expected --psf-softness from 0 to 10, came {psf.softness:g}")
    if not 0 <= psf.crosstalk < 0.5:
        raise ArgumentError(f"expected --psf-crosstalk from 0 to below 0.5, came {psf.crosstalk:g}")
    return psf


def _noise(text: str | None) -> SensorNoise:
    from ldp_export.simulate import NOISE_FREE, SensorNoise

    if text is None:
        return NOISE_FREE
    try:
        shot, read = (float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"expected --noise as two numbers SHOT,READ, such as 5e-5,5e-4, came {text!r}") from None
    if not (0 <= shot < 1 and 0 <= read < 1):
        raise ArgumentError(f"expected --noise with numbers from 0 to below 1, came {text!r}")
    return SensorNoise(shot, read)


# --- sample ---------------------------------------------------------------------------------------------------

_SAMPLE_MORE = """\
examples:
  ldp-export sample -o samples/motorcycle
  ldp-export sample -o motorcycle-far --focus far

Writes left.png, right.png, target.png, coc.npy (signed radius of the circle of
confusion in px) and sample.json into DIR.
"""


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--focus", default=FOCUS_NAMES[0], choices=FOCUS_NAMES, help="what is in focus (default: near)")


def _sample(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ldp_export.samples import MOTORCYCLE, focus_setting

    _check_folder(arguments.output, "sample.json")
    pair = focus_setting(arguments.focus)
    record = {
        "scene": "Middlebury 2014 motorcycle (scikit-image's stereo_motorcycle, left view)",
        "focus": arguments.focus,
        "parameters": asdict(MOTORCYCLE),
        "ldp": __version__,
    }
    _write_pair(arguments.output, pair.left, pair.right, pair.target, pair.coc, "sample.json", record)
    print(f"{arguments.output}: {pair.left.shape[1]} x {pair.left.shape[0]} px, {arguments.focus} focus")


# --- parts ----------------------------------------------------------------------------------------------------


def _write_pair(
    folder: Path,
    left: np.ndarray,
    right: np.ndarray,
    target: np.ndarray,
    coc: FloatArray,
    record_name: str,
    record: dict[str, Any],
) -> None:
    import io

    import numpy as np

    from ldp_runtime.image_io import Photo, encode_photo, write_files

    buffer = io.BytesIO()
    np.save(buffer, coc)
    contents: dict[str | os.PathLike[str], bytes] = {
        folder / f"{name}.png": encode_photo(f"{name}.png", Photo(pixels))
        for name, pixels in (("left", left), ("right", right), ("target", target))
    }
    contents[folder / "coc.npy"] = buffer.getvalue()
    contents[folder / record_name] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    _make_folder(folder)
    write_files(contents)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be made: {error.strerror or error}; choose another folder") from error


def _check_folder(folder: Path, marker: str) -> None:
    """Refuses, before anything is computed, a folder that cannot be written or that holds something else.

    Raises:
        ArgumentError: It is a file, it lacks the file `marker` and holds more than notes (.md), or is not writable.
    """
    existing = folder.absolute()
    holds_more = existing.is_dir() and any(path.suffix != ".md" for path in existing.iterdir())
    if holds_more and not (existing / marker).is_file():
        raise ArgumentError(f"expected a new folder, an empty one or one with {marker}, came {folder}; choose another")
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ArgumentError(f"{folder} cannot be written: {existing} is no folder to write to; choose another")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class _Progress:
    """A progress bar on stderr around any iterable, where somebody can see it."""

    def __init__(self, unit: str, total: int | None = None) -> None:
        self._unit, self._total = unit, total

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        from tqdm import tqdm

        return iter(tqdm(items, total=self._total, unit=f" {self._unit}", disable=None, leave=False))
