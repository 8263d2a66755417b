"""The cases: each is made from a seed alone, runs on hostile input, and ends in a correct result or in our error."""

import contextlib
import functools
import io
import os
import resource
import shutil
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import MANIFEST_FILE, TEXT_EMBEDDINGS_FILE
from ldp_runtime.cli import main
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import ImageError, LDPError
from ldp_runtime.images.decode import MAX_PIXELS, Photo
from ldp_runtime.images.photo import encode_photo, read_photo, write_photo
from tests.fuzz import bundle_files, image_files
from tests.fuzz.arrays import LAYOUTS, WRONG, pixels
from tests.fuzz.mutations import change_bytes
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

MAX_STEPS = 4
MEMORY = 1 << 30
"""Bytes by which a case may raise the peak memory of its process."""

RESULT, ERROR = "result", "error"
FINDINGS = ("wrong", "exception", "leftover", "memory", "hang", "crash")
"""Ways to end that are bugs: a wrong image, another exception than ours, files left behind, too much memory, no end
within the limit, the death of the process."""


class WrongError(Exception):
    """The case ended in a result that is not right."""


@dataclass(frozen=True)
class Case:
    """The kind of the input and the seed of its changes."""

    kind: str
    seed: int

    def chance(self) -> Random:
        """The generator of the choices for the whole case."""
        return Random(f"{self.kind} {self.seed}")

    def changes(self, random: Random) -> Iterator[Random]:
        """A generator for each change."""
        for step in range(random.randint(1, MAX_STEPS)):
            yield Random(f"{self.kind} {self.seed} {step}")


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``RESULT``, ``ERROR`` or one of ``FINDINGS``; in detail; and the input of a finding."""

    end: str
    detail: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Place:
    """Where a case may write: ``inputs`` is for its inputs, ``expected`` names the outputs that may be there."""

    inputs: Path
    outputs: Path
    expected: set[str] = field(default_factory=set)


Runner = Callable[[Case, Place], None]


def _image(case: Case, kind: str) -> tuple[bytes, bytes, bool]:
    """An original, its changed copy, and whether both must have the same pixels."""
    random = case.chance()
    original = random.choice(list(image_files.originals()[kind].values()))
    anything, metadata = image_files.MUTATIONS[kind]
    same = random.random() < 0.3
    data = original
    for chance in case.changes(random):
        if not same and chance.random() < 0.2:
            data = change_bytes(chance, data)
        else:
            data = (metadata if same else anything)(chance, data)
    return original, data, same


def _run_image(kind: str, case: Case, place: Place) -> None:
    original, data, same = _image(case, kind)
    path = place.inputs / "image"
    path.write_bytes(data)
    photo = read_photo(path)
    _check_photo(photo)
    if same and photo.orientation == 1:
        path.write_bytes(original)
        before = read_photo(path)
        path.write_bytes(data)
        if before.orientation == 1 and not np.array_equal(before.pixels, photo.pixels):
            raise WrongError("the pixels changed with the metadata")
    out = place.outputs / ("again.png" if case.seed % 2 else "again.tif")
    place.expected.add(out.name)
    write_photo(out, photo)
    again = read_photo(out)
    if not np.array_equal(again.pixels, photo.pixels) or again.pixels.dtype != photo.pixels.dtype:
        raise WrongError(f"the pixels changed when they were written to {out.name}")
    if (again.alpha is None) != (photo.alpha is None) or again.orientation != 1:
        raise WrongError(f"alpha or orientation changed when the photo was written to {out.name}")


def _check_photo(photo: Photo) -> None:
    h, w, channels = photo.pixels.shape
    if channels != 3 or photo.pixels.dtype not in (np.uint8, np.uint16) or not 0 < h * w <= MAX_PIXELS:
        raise WrongError(f"a photo of {photo.pixels.shape} {photo.pixels.dtype}")
    if photo.alpha is not None and (photo.alpha.shape, photo.alpha.dtype) != ((h, w), photo.pixels.dtype):
        raise WrongError(f"alpha of {photo.alpha.shape} {photo.alpha.dtype}")


@functools.cache
def tiny_bundle() -> Path:
    """The bundle that all cases of a process start from."""
    return make_tiny_bundle(Path(tempfile.mkdtemp(prefix="ldp-fuzz-bundle-")))


_FILES = {"manifest": [MANIFEST_FILE], "graph": ["clip.onnx", "deblur.onnx"], "embeddings": [TEXT_EMBEDDINGS_FILE]}
_CHANGES = {
    "manifest": bundle_files.mutate_manifest,
    "graph": bundle_files.mutate_graph,
    "embeddings": bundle_files.mutate_embeddings,
}


def _run_bundle(kind: str, case: Case, place: Place) -> None:
    random = case.chance()
    folder = place.inputs / "tiny"
    shutil.copytree(tiny_bundle(), folder)
    true_hashes = random.random() < (0.5 if kind in ("manifest", "folder") else 0.75)
    backend = "openvino" if random.random() < 0.05 else "onnxruntime"
    for chance in case.changes(random):
        if kind == "folder":
            bundle_files.mutate_folder(chance, folder)
        else:
            path = folder / chance.choice(_FILES[kind])
            path.write_bytes(_CHANGES[kind](chance, path.read_bytes()))
    if true_hashes:
        bundle_files.relist(folder)
    bundle = Bundle.load(folder)
    views = np.random.default_rng(case.seed).integers(0, 256, (2, 20, 24, 3), np.uint8)
    result = Deblurrer(bundle, backend=backend, precision="fp32", threads=1)(views[0], views[1])
    if result.restored.shape != views[0].shape or not np.isfinite(result.blur_map).all():
        raise WrongError(f"an image of {result.restored.shape}")


@functools.cache
def _deblurrer() -> Deblurrer:
    return Deblurrer.from_bundle(tiny_bundle(), backend="onnxruntime", precision="fp32", threads=1)


def _run_arrays(case: Case, place: Place) -> None:
    """Views in odd layouts, some of them no views at all."""
    random = case.chance()
    height, width, dtype = random.randint(1, 40), random.randint(1, 40), random.choice((np.uint8, np.uint16))
    plain = [pixels(height, width, dtype, case.seed + i) for i in range(2)]
    views = [LAYOUTS[random.choice(sorted(LAYOUTS))](view) for view in plain]
    if random.random() < 0.3:
        views[random.randrange(2)] = WRONG[random.choice(sorted(WRONG))](plain[0])
    axis = random.choice(("horizontal", "vertical"))
    restored, expected = (_deblurrer()(*each, axis=axis).restored for each in (views, plain))
    if restored.dtype != expected.dtype or not np.array_equal(restored, expected):
        raise WrongError("the image depends on its memory layout")


def _run_command(case: Case, place: Place) -> None:
    """``ldp deblur`` on a changed file beside an intact one: exit code, one line, nothing left behind."""
    random = case.chance()
    kind = random.choice(list(image_files.MUTATIONS))
    original, data, _ = _image(case, kind)
    left, right = place.inputs / "left", place.inputs / "right"
    left.write_bytes(data)
    right.write_bytes(data if random.random() < 0.7 else original)
    out = place.outputs / random.choice(("out.png", "out.tif", "out.jpg"))
    arguments = ["deblur", str(left), str(right), "-o", str(out), "--bundle", str(tiny_bundle()), "--quiet"]
    arguments += ["--backend", "onnxruntime", "--threads", "1"]
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(arguments)
    lines = errors.getvalue().splitlines()
    if code == 2:
        if not lines or not lines[-1].startswith("ldp: error: ") or out.exists():
            raise WrongError(f"exit code 2 with {lines} and an output" if out.exists() else f"exit code 2 with {lines}")
        raise ImageError(lines[-1])
    if code != 0 or not out.is_file():
        raise WrongError(f"exit code {code}: {errors.getvalue()}")
    _check_photo(read_photo(out))
    place.expected.add(out.name)


def _run_exif(case: Case, place: Place) -> None:
    """A changed EXIF block goes through every format that carries one."""
    random = case.chance()
    block = image_files.exif_block(order=random.choice("<>"), orientation=random.randint(1, 8))
    for chance in case.changes(random):
        block = image_files.mutate_exif(chance, block)
    pixels = np.zeros((2, 3, 3), np.uint8)
    png = encode_photo("a.png", Photo(pixels))
    chunks = image_files.split_png(png)
    chunks.insert(1, (b"eXIf", block))
    path = place.inputs / "image"
    path.write_bytes(image_files.join_png(chunks))
    photo = read_photo(path)
    for suffix in (".png", ".tif", ".jpg"):
        out = place.outputs / f"again{suffix}"
        place.expected.add(out.name)
        write_photo(out, photo)
        if (again := read_photo(out)).exif != photo.exif or again.orientation != 1:
            raise WrongError(f"the EXIF block changed when it was written as {suffix}")


# --- controls: faults that the harness has to notice


def _control(kind: str, case: Case, place: Place) -> None:
    match kind:
        case "traceback":
            struct.unpack("<I", b"")
        case "leftover":
            (place.outputs / ".out.png.tmp").touch()
            raise ImageError("a file stayed behind")
        case "crash":
            os.abort()
        case "hang":
            while True:
                pass


KINDS: dict[str, tuple[int, Runner]] = {
    "png": (22, functools.partial(_run_image, "png")),
    "tiff": (24, functools.partial(_run_image, "tiff")),
    "jpeg": (16, functools.partial(_run_image, "jpeg")),
    "pnm": (2, functools.partial(_run_image, "pnm")),
    "exif": (6, _run_exif),
    "manifest": (12, functools.partial(_run_bundle, "manifest")),
    "graph": (8, functools.partial(_run_bundle, "graph")),
    "embeddings": (2, functools.partial(_run_bundle, "embeddings")),
    "folder": (2, functools.partial(_run_bundle, "folder")),
    "command": (4, _run_command),
    "arrays": (2, _run_arrays),
}
"""Kind -> its share in percent, and what runs it."""

CONTROLS: dict[str, Runner] = {
    f"control-{name}": functools.partial(_control, name) for name in ("traceback", "leftover", "crash", "hang")
}


def draw(seed: int, count: int) -> Iterator[Case]:
    """Cases of all kinds, in their shares; equal for equal seeds."""
    random = Random(seed)
    names, weights = list(KINDS), [share for share, _ in KINDS.values()]
    for i in range(count):
        yield Case(random.choices(names, weights)[0], seed * 10**7 + i)


def run_case(case: Case) -> Outcome:
    """Runs a case in its own folder and returns how it ended; the caller notices a dead process."""
    runner = CONTROLS[case.kind] if case.kind in CONTROLS else KINDS[case.kind][1]
    tiny_bundle()  # outside of every case's folder
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="ldp-fuzz-") as name:
        root = Path(name)
        place = Place(root / "in", root / "out")
        place.inputs.mkdir()
        place.outputs.mkdir()
        before = tempfile.tempdir
        (root / "tmp").mkdir()
        tempfile.tempdir = str(root / "tmp")
        try:
            end, detail = RESULT, ""
            try:
                runner(case, place)
            except LDPError as error:
                end, detail = ERROR, type(error).__name__
                if "\n" in str(error):
                    end, detail = "wrong", f"an error of several lines: {error}"
            except WrongError as error:
                end, detail = "wrong", str(error)
            except MemoryError:
                end, detail = "memory", traceback.format_exc()
            except Exception:
                end, detail = "exception", traceback.format_exc()
            names = {path.name for path in place.outputs.iterdir()}
            left = (
                names - place.expected
                if end == RESULT
                else {n for n in names if ".tmp" in n or n not in place.expected}
            )
            left |= {path.name for path in (root / "tmp").iterdir()}
            if end in (RESULT, ERROR) and left:
                end, detail = "leftover", ", ".join(sorted(left))
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most)
            if end in (RESULT, ERROR) and grown > MEMORY:
                end, detail = "memory", f"{grown} bytes more"
            return Outcome(end, detail, _contents(place.inputs) if end in FINDINGS else {})
        finally:
            tempfile.tempdir = before


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.resolve().is_relative_to(folder.resolve()))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.stat().st_size < 10**7}
