"""Random layered scenes from photographs, rendered as DP pairs: what ldp-nano is trained on.

Each scene is 256 x 256 px: a background with a slanted or undulating CoC and up to five nearer objects of random
shape, all cut from photographs (or drawn), rendered with a half-aperture PSF drawn anew, then noise and JPEG
compression drawn anew. Shards of 64 scenes are files ``scenes-NNNN.npz``; a shard depends on its number, the seed and
the photographs alone, so rendering resumes, and several processes share the work. The Middlebury motorcycle scene and
``ldp_export.simulation.rays`` are never used here: they are the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from ldp_export.simulation.shards import SHARD_PATTERN, scenes_in_shard
from ldp_export.simulation.simulate import (
    FloatArray,
    HalfAperturePSF,
    Layer,
    SensorNoise,
    SimulationError,
    linear_to_srgb,
    quantise,
    render_views,
    srgb_to_linear,
)
from ldp_runtime.files import cannot_write, replacing

SIDE = 256
MARGIN = 16
FRAME = SIDE + 2 * MARGIN
SCENES_A_SHARD = 64
SEED = 20261122
"""Of the scenes that ldp-nano was trained on."""

MAX_RADIUS = 7.0
LARGEST_PHOTO = 3000
SKIMAGE = "skimage:"
"""Begins the names of photographs that come with scikit-image."""

_SUFFIXES = (".jpg", ".png")

Pixels = NDArray[np.uint8]


def read_photo_list(path: Path) -> tuple[str, ...]:
    """Reads a list of photographs: one a line, ``#`` begins a comment.

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
        names: The end of each photograph's path, or ``skimage:NAME``; None takes all JPEG and PNG files, by path.

    Raises:
        SimulationError: One is not found or cannot be decoded, or there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if names is None:
        if not files:
            raise SimulationError(f"expected photographs (*.jpg, *.png) in {folder}, got none; check the folder")
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


@dataclass(frozen=True)
class VariedPSF(HalfAperturePSF):
    """A half-aperture PSF with more variety: stretched, and with a dim or bright rim (spherical aberration)."""

    stretch: float = 1.0
    rim: float = 0.0

    def views(self, radius: float) -> tuple[FloatArray, FloatArray]:
        """As in ``HalfAperturePSF``."""
        left, right = super().views(radius)
        if left.size == 1:
            return left, right
        half = left.shape[0] // 2
        y = np.arange(-half, half + 1)[:, None]
        x = np.arange(-half, half + 1)[None, :]
        weight = 1 + self.rim * np.clip((x**2 + y**2) / max(radius * radius, 0.5), 0, 1.3).astype(np.float32)
        shaped = []
        for kernel in (left, right):
            weighted: NDArray[Any] = kernel * weight
            if self.stretch != 1:
                matrix = np.array([[1, 0, 0], [0, self.stretch, half * (1 - self.stretch)]], dtype=np.float32)
                weighted = cv2.warpAffine(weighted, matrix, (kernel.shape[1], kernel.shape[0]))
            shaped.append((weighted / weighted.sum()).astype(np.float32))
        return shaped[0], shaped[1]


def random_psf(rng: np.random.Generator) -> VariedPSF:
    """Draws edge softness, split softness, crosstalk, stretch and rim."""
    return VariedPSF(
        order=float(np.exp(rng.uniform(np.log(2.5), np.log(25)))),
        softness=float(np.exp(rng.uniform(np.log(0.02), np.log(0.45)))),
        crosstalk=float(rng.uniform(0, 0.12)),
        stretch=float(rng.uniform(0.85, 1.0)) if rng.random() < 0.5 else 1.0,
        rim=float(rng.uniform(-0.5, 0.8)) if rng.random() < 0.6 else 0.0,
    )


def random_texture(rng: np.random.Generator, photos: list[Pixels]) -> FloatArray:
    """A sharp ``(FRAME, FRAME, 3)`` linear-light texture: a reduced crop of a photograph, or something drawn."""
    if rng.random() < 0.08:
        return srgb_to_linear(_drawing(rng))
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
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    linear = srgb_to_linear(crop.astype(np.float32) / np.float32(255))
    if rng.random() < 0.3:
        linear = linear[..., rng.permutation(3)]
    gain = np.exp(rng.uniform(-0.6, 0.5))
    if rng.random() < 0.1:  # specular highlights beyond the sensor's range
        linear = np.where(linear > 0.8, linear * rng.uniform(1, 4), linear)
    return np.ascontiguousarray(linear * gain, dtype=np.float32)


def _drawing(rng: np.random.Generator) -> FloatArray:
    image: FloatArray = np.full((FRAME, FRAME, 3), rng.uniform(0, 1, 3), dtype=np.float32)
    for _ in range(int(rng.integers(10, 60))):
        color = tuple(float(c) for c in rng.uniform(0, 1, 3))
        x0, y0, x1, y1 = (int(c) for c in rng.integers(0, FRAME, 4))
        kind = rng.integers(4)
        canvas = (image * 255).astype(np.uint8)
        color255 = tuple(c * 255 for c in color)
        if kind == 0:
            text = "".join(chr(c) for c in rng.integers(33, 126, 8))
            size, thickness = float(rng.uniform(0.3, 1.2)), int(rng.integers(1, 3))
            cv2.putText(canvas, text, (x0, y0), int(rng.integers(8)), size, color255, thickness, cv2.LINE_AA)
        elif kind == 1:
            cv2.line(canvas, (x0, y0), (x1, y1), color255, int(rng.integers(1, 6)), cv2.LINE_AA)
        elif kind == 2:
            cv2.rectangle(canvas, (x0, y0), (x0 + (x1 - x0) // 4, y0 + (y1 - y0) // 4), color255, -1)
        else:
            cv2.circle(canvas, (x0, y0), int(rng.integers(1, 24)), color255, -1, cv2.LINE_AA)
        image = canvas.astype(np.float32) / np.float32(255)
    return image


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


def random_limit(rng: np.random.Generator) -> float:
    """The scene's depth of blur in px: one scene in eight is exactly sharp, one in eight hardly blurred."""
    kind = rng.random()
    if kind < 0.125:
        return 0.0
    return float(rng.uniform(0.0, 0.8) if kind < 0.25 else rng.uniform(1.5, MAX_RADIUS))


def random_scene(rng: np.random.Generator, photos: list[Pixels]) -> list[Layer]:
    """Layers far to near, with |CoC radius| up to ``MAX_RADIUS`` px; see ``random_limit``."""
    limit = random_limit(rng)
    count = int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.2, 0.2, 0.2, 0.15, 0.15, 0.1]))
    depths = np.sort(rng.uniform(-limit, limit, count + 1))[::-1]
    y, x = np.mgrid[0:FRAME, 0:FRAME].astype(np.float32) / FRAME - 0.5
    layers = []
    for i, depth in enumerate(depths):
        coc = np.full((FRAME, FRAME), depth, dtype=np.float32)
        if rng.random() < (0.7 if i == 0 else 0.35):
            slope = rng.normal(0, limit * (0.9 if i == 0 else 0.3), 2)
            coc += np.float32(slope[0]) * x + np.float32(slope[1]) * y
        if rng.random() < 0.15:
            coc += np.float32(limit * 0.25) * smooth_field(rng, int(rng.integers(2, 5)))
        alpha = np.ones((FRAME, FRAME), dtype=np.float32) if i == 0 else random_shape(rng)
        layers.append(Layer(random_texture(rng, photos), alpha, np.clip(coc, -MAX_RADIUS, MAX_RADIUS)))
    return layers


def degrade(rng: np.random.Generator, views: tuple[FloatArray, FloatArray]) -> list[Pixels]:
    """Linear views to uint8 sRGB, with sensor noise, noise after encoding, and JPEG, each sometimes."""
    if rng.random() < 0.25:
        noise = SensorNoise()
    else:
        noise = SensorNoise(float(10 ** rng.uniform(-5.5, -3.4)), float(10 ** rng.uniform(-4, -2.6)))
    late = float(rng.uniform(0, 4 / 255)) if rng.random() < 0.2 else 0.0
    quality = int(rng.integers(80, 99)) if rng.random() < 0.25 else None
    degraded = []
    for view in views:
        encoded = linear_to_srgb(noise.add(view, rng))
        if late:
            encoded = encoded + np.float32(late) * rng.standard_normal(encoded.shape, dtype=np.float32)
        pixels = np.asarray(quantise(encoded), np.uint8)
        if quality is not None:
            _, buffer = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
            pixels = np.asarray(cv2.imdecode(buffer, cv2.IMREAD_COLOR), np.uint8)
        degraded.append(pixels)
    return degraded


def render_scene(rng: np.random.Generator, photos: list[Pixels]) -> dict[str, np.ndarray]:
    """``left``, ``right``, ``target`` ``(256, 256, 3)`` uint8; ``coc``, ``disparity`` ``(256, 256)`` float16 in px."""
    crop = np.s_[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
    layers, psf = random_scene(rng, photos), random_psf(rng)
    sharp = layers[0].color
    coc = np.asarray(layers[0].coc)
    for layer in layers[1:]:
        alpha = layer.alpha[..., None]
        sharp = layer.color * alpha + (1 - alpha) * sharp
        coc = np.where(layer.alpha > 0.5, layer.coc, coc)
    views = render_views(layers, psf)
    left, right = degrade(rng, (views[0][crop], views[1][crop]))
    return {
        "left": left,
        "right": right,
        "target": quantise(linear_to_srgb(sharp[crop])),
        "coc": coc[crop].astype(np.float16),
        "disparity": (coc[crop] * psf.disparity(4.0) / 4).astype(np.float16),
    }


def render_shard(
    number: int, photos: list[Pixels], *, scenes: int = SCENES_A_SHARD, seed: int = SEED
) -> dict[str, np.ndarray]:
    """One shard.

    Args:
        number: Of the shard.
        photos: Photographs, ``(h, w, 3)`` each.
        scenes: Render so many of its scenes, the first ones.
        seed: Of everything.

    Returns:
        The fields of ``render_scene`` with an axis of scenes before them.
    """
    rendered = [render_scene(np.random.default_rng((seed, number, index)), photos) for index in range(scenes)]
    return {key: np.stack([scene[key] for scene in rendered]) for key in rendered[0]}


@dataclass(frozen=True)
class RenderJob:
    """What is rendered from what, and where to.

    Attributes:
        photos: Folder of the photographs.
        names: Which of them, as for ``load_photos``.
        output: Folder of the shards.
        seed: Of everything.
    """

    photos: Path
    names: tuple[str, ...] | None
    output: Path
    seed: int = SEED


def render(
    job: RenderJob, scenes: int, *, jobs: int = 1, progress: Callable[[int], object] = lambda done: None
) -> None:
    """Renders scenes in shards; those that are there already stay as they are.

    Args:
        job: What to render.
        scenes: How many scenes in all.
        jobs: So many processes share the work.
        progress: Is told how many scenes are done each time that a shard is.

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
    shard = render_shard(number, photos, scenes=count, seed=job.seed)
    try:
        with replacing(path) as file:
            np.savez(file, **shard)  # type: ignore[arg-type]  # the stub takes every keyword for an option
    except OSError as error:
        raise SimulationError(cannot_write(path, error)) from error
    return count
