"""Random layered scenes from photographs, rendered as DP pairs: what ldp-nano is trained on.

Each scene is 256 x 256 px: a background with a slanted or undulating CoC and up to five nearer objects of random
shape, all cut from photographs or drawn, seen through an aperture (``apertures``) by a camera (``cameras``), both
drawn anew. Shards of 64 scenes are files ``scenes-NNNN.npz``; a shard depends on its number, the seed and the
photographs alone, so rendering resumes, and several processes share the work. The Middlebury motorcycle scene and
``ldp_export.simulation.rays`` are never used here: they are the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from ldp_export.simulation.apertures import SEPARATIONS, Layer, random_aperture, render_wrapped
from ldp_export.simulation.cameras import random_camera
from ldp_export.simulation.drawings import random_drawing
from ldp_export.simulation.optics import FloatArray, SimulationError
from ldp_export.simulation.shards import SHARD_PATTERN, scenes_in_shard
from ldp_runtime.files import cannot_write, replacing
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

SIDE = 256
MARGIN = 32
FRAME = SIDE + 2 * MARGIN
SCENES_A_SHARD = 64
SEED = 20261128
"""Of the scenes that ldp-nano was trained on."""

MAX_RADIUS = 20.0
LARGEST_PHOTO = 3000
SKIMAGE = "skimage:"
"""Begins the names of photographs that come with scikit-image."""
_SAMPLE_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")

_SUFFIXES = (".jpg", ".png", ".webp")

Pixels = NDArray[np.uint8]


def read_photo_list(path: Path) -> tuple[str, ...]:
    """Reads a list of photographs: one per line, ``#`` begins a comment.

    Raises:
        SimulationError: The file cannot be read or names none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SimulationError(
            f"{path}: expected a text file with a photograph a line, got {error}; check the name"
        ) from None
    names = tuple(line for line in lines if line and not line.startswith("#"))
    if not names:
        raise SimulationError(f"{path}: expected a photograph a line, got none; name some")
    return names


def load_photos(folder: Path, names: Sequence[str] | None = None) -> list[Pixels]:
    """Reads photographs as ``(h, w, 3)`` RGB, the largest reduced to a width of ``LARGEST_PHOTO`` px.

    Args:
        folder: Where they are, at any depth.
        names: The end of each photograph's path, or ``skimage:NAME``; None takes all JPEG, PNG and WebP files, by path.

    Raises:
        SimulationError: One is not found or cannot be decoded, or there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if names is None:
        if not files:
            raise SimulationError(
                f"expected photographs (*.jpg, *.png, *.webp) in {folder}, got none; check the folder"
            )
        return [_read_photo(path) for path in files]
    return [_skimage_photo(name) if name.startswith(SKIMAGE) else _find_photo(files, name, folder) for name in names]


def _find_photo(files: Sequence[Path], name: str, folder: Path) -> Pixels:
    matches = [path for path in files if path.as_posix().endswith(name)]
    if not matches:
        raise SimulationError(
            f"expected the photograph {name} under {folder}, got none; unpack it there, or edit the list"
        )
    return _read_photo(matches[0])


def _read_photo(path: Path) -> Pixels:
    decoded = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if decoded is None:
        raise SimulationError(f"{path}: expected a photograph, got something that cannot be decoded; remove it")
    image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    if image.shape[1] > LARGEST_PHOTO:
        scale = LARGEST_PHOTO / image.shape[1]
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8)


def _skimage_photo(name: str) -> Pixels:
    loader = getattr(data, name.removeprefix(SKIMAGE), None)
    if loader is None:
        raise SimulationError(f"expected a photograph that comes with scikit-image, got {name}; check its name")
    image = loader()
    return np.ascontiguousarray(np.dstack([image] * 3) if image.ndim == 2 else image)


def random_texture(rng: np.random.Generator, photos: list[Pixels]) -> FloatArray:
    """A sharp ``(FRAME, FRAME, 3)`` linear-light texture: a reduced crop of a photograph, or something drawn."""
    crop = photos[0]
    for _ in range(6):
        photo = photos[rng.integers(len(photos))]
        height, width = photo.shape[:2]
        smallest = FRAME / min(height, width)
        scale = np.exp(rng.uniform(np.log(smallest), np.log(max(smallest, 0.7 if width > 1000 else 1.0))))
        side = min(int(FRAME / scale), height, width)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        region = photo[top : top + side, left : left + side]
        crop = np.asarray(cv2.resize(region, (FRAME, FRAME), interpolation=cv2.INTER_AREA), np.uint8)
        detail = np.abs(np.diff(crop.astype(np.float32).mean(2), axis=1)).mean()
        if detail > 4 or rng.random() < 0.2:
            break
    if rng.random() < 0.2:
        crop = random_drawing(rng, FRAME, crop.reshape(-1, 3))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    linear = srgb_to_linear(crop.astype(np.float32) / np.float32(255))
    if rng.random() < 0.3:
        linear = linear[..., rng.permutation(3)]
    gain = np.exp(rng.uniform(-0.6, 0.5))
    if rng.random() < 0.1:  # specular highlights beyond the sensor's range
        linear = np.where(linear > 0.8, linear * rng.uniform(1, 4), linear)
    return np.ascontiguousarray(linear * gain, dtype=np.float32)


def random_shape(rng: np.random.Generator) -> FloatArray:
    """Coverage ``(FRAME, FRAME)`` in [0, 1] of a random object: blob, polygon, bars, rings or holes."""
    mask = np.zeros((FRAME, FRAME), dtype=np.uint8)
    kind = rng.integers(5)
    if kind == 0:
        field = smooth_field(rng, int(rng.integers(3, 9)))
        return np.clip((field - rng.uniform(0.0, 1.0)) * 60 + 0.5, 0, 1).astype(np.float32)
    if kind == 1:
        centre = rng.uniform(0, FRAME, 2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        radii = rng.uniform(20, 140, len(angles))
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    elif kind == 2:
        for _ in range(int(rng.integers(1, 7))):
            ends = rng.integers(-40, FRAME + 40, 4)
            cv2.line(mask, tuple(ends[:2]), tuple(ends[2:]), 255, int(rng.integers(2, 30)), cv2.LINE_AA)
    elif kind == 3:
        for _ in range(int(rng.integers(1, 4))):
            middle, axes = rng.integers(0, FRAME, 2), rng.integers(10, 110, 2)
            thickness = -1 if rng.random() < 0.6 else int(rng.integers(3, 20))
            angle = float(rng.uniform(0, 180))
            cv2.ellipse(mask, tuple(middle), tuple(axes), angle, 0, 360, 255, thickness, cv2.LINE_AA)
    else:
        text = "".join(chr(c) for c in rng.integers(33, 126, 4))
        origin = (int(rng.integers(-20, 120)), int(rng.integers(80, FRAME)))
        font, scale, thickness = int(rng.integers(8)), float(rng.uniform(2, 6)), int(rng.integers(4, 18))
        cv2.putText(mask, text, origin, font, scale, 255, thickness, cv2.LINE_AA)
    return mask.astype(np.float32) / np.float32(255)


def smooth_field(rng: np.random.Generator, cells: int) -> FloatArray:
    """A smooth random field ``(FRAME, FRAME)`` with a standard deviation of about 1."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    field = cv2.resize(coarse, (FRAME, FRAME), interpolation=cv2.INTER_CUBIC)
    return (field / max(float(field.std()), 1e-3)).astype(np.float32)


def random_depths(rng: np.random.Generator) -> tuple[float, float]:
    """Least and largest CoC radius of a scene in px: one scene in eight is exactly sharp, one in twelve hardly blurred.

    The others are log-uniform up to ``MAX_RADIUS``; in half of them the focal plane lies within the scene, and in the
    others before it, behind it, or near its front.
    """
    kind = rng.random()
    if kind < 1 / 8:
        return 0.0, 0.0
    limit = float(rng.uniform(0.0, 0.8) if kind < 5 / 24 else np.exp(rng.uniform(np.log(1.2), np.log(MAX_RADIUS))))
    kind, part = rng.random(), float(rng.uniform(0, 0.9))
    if kind < 0.5:
        return -limit, limit
    if kind < 0.75:
        return part * limit, limit
    return (-limit, -part * limit) if kind < 0.85 else (-limit / 4, limit)


def random_scene(rng: np.random.Generator, photos: list[Pixels]) -> list[Layer]:
    """Layers far to near, with |CoC radius| up to ``MAX_RADIUS`` px; see ``random_depths``."""
    low, high = random_depths(rng)
    count = int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.2, 0.25, 0.25, 0.15, 0.1, 0.05]))
    depths = np.sort(rng.uniform(low, high, count + 1))[::-1]
    y, x = np.mgrid[0:FRAME, 0:FRAME].astype(np.float32) / FRAME - 0.5
    layers = []
    for i, depth in enumerate(depths):
        coc = np.full((FRAME, FRAME), depth, dtype=np.float32)
        if rng.random() < (0.6 if i == 0 else 0.25):
            slope = rng.normal(0, (high - low) * (0.45 if i == 0 else 0.15), 2)
            coc += np.float32(slope[0]) * x + np.float32(slope[1]) * y
        if rng.random() < 0.1:
            coc += np.float32((high - low) * 0.12) * smooth_field(rng, int(rng.integers(2, 5)))
        alpha = np.ones((FRAME, FRAME), dtype=np.float32) if i == 0 else random_shape(rng)
        layers.append(Layer(random_texture(rng, photos), alpha, np.clip(coc, -MAX_RADIUS, MAX_RADIUS)))
    return layers


def render_scene(
    rng: np.random.Generator, photos: list[Pixels], separation: float | None = None
) -> dict[str, np.ndarray]:
    """``left``, ``right``, ``target`` ``(256, 256, 3)`` uint8; ``coc``, ``disparity`` ``(256, 256)`` float16 in px."""
    crop = np.s_[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
    camera, layers = random_camera(rng), random_scene(rng, photos)
    if camera.encoded:
        layers = [replace(layer, color=linear_to_srgb(np.minimum(layer.color, 1))) for layer in layers]
    sharp = layers[0].color
    coc = np.asarray(layers[0].coc)
    for layer in layers[1:]:
        alpha = layer.alpha[..., None]
        sharp = layer.color * alpha + (1 - alpha) * sharp
        coc = np.where(layer.alpha > 0.5, layer.coc, coc)
    aperture = random_aperture(rng, misaligned=bool(coc.any()), separation=separation)
    left, right = camera.views(rng, *(view[crop] for view in render_wrapped(layers, aperture)))
    return {
        "left": left,
        "right": right,
        "target": camera.target(sharp[crop]),
        "coc": coc[crop].astype(np.float16),
        "disparity": (coc[crop] * aperture.disparity(1.0)).astype(np.float16),
    }


def sample_scenes(count: int, *seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Scenes of ``render_scene`` from four photographs of scikit-image; the same for the same seed.

    Args:
        count: How many.
        seed: Seed of everything, one number or more.
    """
    photos = [_skimage_photo(SKIMAGE + name) for name in _SAMPLE_PHOTOS]
    return (render_scene(np.random.default_rng((*seed, index)), photos) for index in range(count))


def render_shard(
    number: int,
    photos: list[Pixels],
    *,
    scenes: int = SCENES_A_SHARD,
    seed: int = SEED,
    separation: float | None = None,
) -> dict[str, np.ndarray]:
    """One shard.

    Args:
        number: Of the shard.
        photos: Photographs, ``(h, w, 3)`` each.
        scenes: Render so many of its scenes, the first ones.
        seed: Of everything.
        separation: As for ``random_aperture``.

    Returns:
        The fields of ``render_scene`` with an axis of scenes before them.
    """
    rendered = [
        render_scene(np.random.default_rng((seed, number, index)), photos, separation) for index in range(scenes)
    ]
    return {key: np.stack([scene[key] for scene in rendered]) for key in rendered[0]}


@dataclass(frozen=True)
class RenderJob:
    """What is rendered from what, and where to.

    Attributes:
        photos: Folder of the photographs.
        names: Which of them, as for ``load_photos``.
        output: Folder of the shards.
        seed: Of everything.
        separation: As for ``random_aperture``.

    Raises:
        SimulationError: No aperture has that separation.
    """

    photos: Path
    names: tuple[str, ...] | None
    output: Path
    seed: int = SEED
    separation: float | None = None

    def __post_init__(self) -> None:
        if self.separation is not None and not 0 <= self.separation <= SEPARATIONS[1]:
            raise SimulationError(
                f"expected a separation of the views from 0 to {SEPARATIONS[1]:g} r, got {self.separation:g}; take one "
                "that ldp-export measure-psf prints"
            )


def render(
    job: RenderJob, scenes: int, *, jobs: int = 1, progress: Callable[[int], object] = lambda done: None
) -> None:
    """Renders scenes in shards; those that are there already stay as they are.

    Args:
        job: What to render.
        scenes: How many scenes in all.
        jobs: So many processes share the work.
        progress: Takes how many scenes are done each time that a shard is.

    Raises:
        SimulationError: A photograph is missing, or the folder cannot be written.
    """
    if scenes < 1 or jobs < 1:
        raise SimulationError(f"expected at least 1 scene and 1 process, got {scenes} and {jobs}")
    wanted = [min(SCENES_A_SHARD, scenes - first) for first in range(0, scenes, SCENES_A_SHARD)]
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimulationError(f"{job.output} cannot be made: {error.strerror or error}; choose another") from error
    missing = {n: count for n, count in enumerate(wanted) if scenes_in_shard(shard_path(job.output, n)) < count}
    progress(sum(count for n, count in enumerate(wanted) if n not in missing))
    if jobs == 1 or len(missing) < 2:
        photos = load_photos(job.photos, job.names)
        for number, count in missing.items():
            progress(_write_shard(job, number, count, photos))
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(missing)), context, _start_worker, (job,))
    try:
        for done in as_completed(pool.submit(_work, job, number, count) for number, count in missing.items()):
            progress(done.result())
    except BrokenProcessPool as error:
        raise SimulationError(
            "a process that renders was killed, perhaps for want of memory; run the same command again, which keeps "
            "the shards that are done, with fewer --jobs"
        ) from error
    except KeyboardInterrupt:
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / SHARD_PATTERN.replace("*", f"{number:04d}")


_worker_photos: list[Pixels] = []


def _start_worker(job: RenderJob) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone answers it
    Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _worker_photos[:] = load_photos(job.photos, job.names)


def _end_with_parent() -> None:
    """Ends this process when the one that started it was killed: nobody would take its work."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: RenderJob, number: int, count: int) -> int:
    return _write_shard(job, number, count, _worker_photos)


def _write_shard(job: RenderJob, number: int, count: int, photos: list[Pixels]) -> int:
    path = shard_path(job.output, number)
    shard = render_shard(number, photos, scenes=count, seed=job.seed, separation=job.separation)
    try:
        with replacing(path) as file:
            np.savez(file, **shard)  # type: ignore[arg-type]  # the stub takes every keyword for an option
    except OSError as error:
        raise SimulationError(cannot_write(path, error)) from error
    return count
