"""Renders the training scenes of ldp-nano: random layered scenes from free-licensed photographs, as DP pairs.

Each scene is 256 x 256 px: a background with a slanted or undulating CoC and up to five nearer objects of random
shape, all cut from photographs (or drawn), rendered with a half-aperture PSF drawn anew, then noise and JPEG
compression drawn anew. Shards of 64 scenes go to `OUT/scenes-NNNN.npz`; a shard depends on its number alone, so
rendering resumes, and several processes can share the work. The Middlebury motorcycle scene and
`ldp_export.simulate_rays` are never used here.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from ldp_export.simulate import (
    FloatArray,
    HalfAperturePSF,
    Layer,
    SensorNoise,
    linear_to_srgb,
    quantise,
    render_views,
    srgb_to_linear,
)

SIDE = 256
MARGIN = 16
FRAME = SIDE + 2 * MARGIN
SCENES_A_SHARD = 64
SEED = 20261122
MAX_RADIUS = 7.0

# Photographs of Debian's packages lomiri-wallpapers-16.04, lomiri-wallpapers-20.04, mate-backgrounds and
# plasma-workspace-wallpapers, by the end of their path; licences are in models/ldp-nano/README.md.
PHOTOS = (
    "Bridge_by_Sander_Klootwijk.jpg",
    "Dragonfly_by_Bolly.jpg",
    "Kleiber_by_Lukas_Baubkus.jpg",
    "Picture_0B_by_freespace.jpg",
    "Picture_1A_by_freespace.jpg",
    "Wine_by_Jakkub_Mede.jpg",
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "friends_by_Aitzol_Berasategi.jpg",
    "greentock_by_Peter_Nerlich.jpg",
    "life_by_Aitzol_Berasategi.jpg",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "seeding_by_Clements_Engelhardt.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
    "nature/Blinds.jpg",
    "nature/Dune.jpg",
    "nature/FreshFlower.jpg",
    "nature/Garden.jpg",
    "nature/GreenMeadow.jpg",
    "nature/LadyBird.jpg",
    "nature/RainDrops.jpg",
    "nature/Wood.jpg",
    "nature/YellowFlower.jpg",
    "abstract/Elephants_3840x2160.jpg",
    "Altai/contents/images/5120x2880.png",
    "BytheWater/contents/images/2560x1600.jpg",
    "Canopee/contents/images/3840x2160.png",
    "ColdRipple/contents/images/2560x1600.jpg",
    "ColorfulCups/contents/images/2560x1600.jpg",
    "EveningGlow/contents/images/2560x1600.jpg",
    "FallenLeaf/contents/images/2560x1600.jpg",
    "Flow/contents/images/5120x2880.jpg",
    "Grey/contents/images/2560x1600.jpg",
    "Honeywave/contents/images/5120x2880.jpg",
    "IceCold/contents/images/5120x2880.png",
    "OneStandsOut/contents/images/2560x1600.jpg",
    "Patak/contents/images/5120x2880.png",
    "Path/contents/images/2560x1600.jpg",
    "SafeLanding/contents/images/5120x2880.jpg",
)
SKIMAGE_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "brick", "grass", "gravel", "page", "text")


def load_photos(folder: Path) -> list[np.ndarray]:
    """Reads the photographs as `(h, w, 3)` uint8 RGB, the largest reduced to a width of 3000 px.

    Raises:
        SystemExit: A named photograph is missing.
    """
    files = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")]
    photos = []
    for name in PHOTOS:
        matches = [path for path in files if path.as_posix().endswith(name)]
        if not matches:
            raise SystemExit(f"photograph {name} not found under {folder}; unpack the four Debian packages there")
        image = cv2.cvtColor(cv2.imread(str(matches[0]), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        if image.shape[1] > 3000:
            scale = 3000 / image.shape[1]
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photos.append(image)
    for name in SKIMAGE_PHOTOS:
        image = getattr(data, name)()
        photos.append(np.ascontiguousarray(np.dstack([image] * 3) if image.ndim == 2 else image))
    return photos


@dataclass(frozen=True)
class VariedPSF(HalfAperturePSF):
    """A half-aperture PSF with more variety: stretched, and with a dim or bright rim (spherical aberration)."""

    stretch: float = 1.0
    rim: float = 0.0

    def views(self, radius: float) -> tuple[FloatArray, FloatArray]:
        """As in `HalfAperturePSF`."""
        left, right = super().views(radius)
        if left.size == 1:
            return left, right
        half = left.shape[0] // 2
        y = np.arange(-half, half + 1)[:, None]
        x = np.arange(-half, half + 1)[None, :]
        weight = 1 + self.rim * np.clip((x**2 + y**2) / max(radius * radius, 0.5), 0, 1.3).astype(np.float32)
        shaped = []
        for kernel in (left, right):
            kernel = kernel * weight
            if self.stretch != 1:
                matrix = np.array([[1, 0, 0], [0, self.stretch, half * (1 - self.stretch)]], dtype=np.float32)
                kernel = cv2.warpAffine(kernel, matrix, kernel.shape[::-1])
            shaped.append((kernel / kernel.sum()).astype(np.float32))
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


def random_texture(rng: np.random.Generator, photos: list[np.ndarray]) -> FloatArray:
    """A sharp `(FRAME, FRAME, 3)` linear-light texture: a reduced crop of a photograph, or something drawn."""
    if rng.random() < 0.08:
        return srgb_to_linear(_drawing(rng))
    for _ in range(6):
        photo = photos[rng.integers(len(photos))]
        height, width = photo.shape[:2]
        smallest = FRAME / min(height, width)
        scale = np.exp(rng.uniform(np.log(smallest), np.log(max(smallest, 0.7 if width > 1000 else 1.0))))
        side = min(int(FRAME / scale), height, width)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = cv2.resize(photo[top : top + side, left : left + side], (FRAME, FRAME), interpolation=cv2.INTER_AREA)
        detail = np.abs(np.diff(crop.astype(np.float32).mean(2), axis=1)).mean()
        if detail > 4 or rng.random() < 0.2:
            break
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    linear = srgb_to_linear(crop.astype(np.float32) / 255)
    if rng.random() < 0.3:
        linear = linear[..., rng.permutation(3)]
    gain = np.exp(rng.uniform(-0.6, 0.5))
    if rng.random() < 0.1:  # specular highlights beyond the sensor's range
        linear = np.where(linear > 0.8, linear * rng.uniform(1, 4), linear)
    return np.ascontiguousarray(linear * gain, dtype=np.float32)


def _drawing(rng: np.random.Generator) -> FloatArray:
    image = np.full((FRAME, FRAME, 3), rng.uniform(0, 1, 3), dtype=np.float32)
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
        image = canvas.astype(np.float32) / 255
    return image


def random_shape(rng: np.random.Generator) -> FloatArray:
    """Coverage `(FRAME, FRAME)` in [0, 1] of a random object: blob, polygon, bars, rings or holes."""
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
            centre, axes = rng.integers(0, FRAME, 2), rng.integers(10, 110, 2)
            thickness = -1 if rng.random() < 0.6 else int(rng.integers(3, 20))
            angle = float(rng.uniform(0, 180))
            cv2.ellipse(mask, tuple(centre), tuple(axes), angle, 0, 360, 255, thickness, cv2.LINE_AA)
    else:
        text = "".join(chr(c) for c in rng.integers(33, 126, 4))
        origin = (int(rng.integers(-20, 120)), int(rng.integers(80, FRAME)))
        font, scale, thickness = int(rng.integers(8)), float(rng.uniform(2, 6)), int(rng.integers(4, 18))
        cv2.putText(mask, text, origin, font, scale, 255, thickness, cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def smooth_field(rng: np.random.Generator, cells: int) -> FloatArray:
    """A smooth random field `(FRAME, FRAME)` with a standard deviation of about 1."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    field = cv2.resize(coarse, (FRAME, FRAME), interpolation=cv2.INTER_CUBIC)
    return (field / max(float(field.std()), 1e-3)).astype(np.float32)


def random_limit(rng: np.random.Generator) -> float:
    """The scene's depth of blur in px: one scene in eight is exactly sharp, one in eight hardly blurred."""
    kind = rng.random()
    if kind < 0.125:
        return 0.0
    return float(rng.uniform(0.0, 0.8) if kind < 0.25 else rng.uniform(1.5, MAX_RADIUS))


def random_scene(rng: np.random.Generator, photos: list[np.ndarray]) -> list[Layer]:
    """Layers far to near, with |CoC radius| up to `MAX_RADIUS` px; see `random_limit`."""
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


def degrade(rng: np.random.Generator, views: tuple[FloatArray, FloatArray]) -> list[np.ndarray]:
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
        pixels = quantise(encoded)
        if quality is not None:
            _, buffer = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
            pixels = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
        degraded.append(pixels)
    return degraded


def render_shard(number: int, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """One shard: `left`, `right`, `target` `(n, 256, 256, 3)` uint8; `coc`, `disparity` `(n, 256, 256)` float16."""
    scenes: dict[str, list[np.ndarray]] = {key: [] for key in ("left", "right", "target", "coc", "disparity")}
    crop = np.s_[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
    for index in range(SCENES_A_SHARD):
        rng = np.random.default_rng((SEED, number, index))
        layers, psf = random_scene(rng, photos), random_psf(rng)
        sharp = layers[0].color
        coc = np.asarray(layers[0].coc)
        for layer in layers[1:]:
            alpha = layer.alpha[..., None]
            sharp = layer.color * alpha + (1 - alpha) * sharp
            coc = np.where(layer.alpha > 0.5, layer.coc, coc)
        left, right = degrade(rng, tuple(view[crop] for view in render_views(layers, psf)))
        scenes["left"].append(left)
        scenes["right"].append(right)
        scenes["target"].append(quantise(linear_to_srgb(sharp[crop])))
        scenes["coc"].append(coc[crop].astype(np.float16))
        scenes["disparity"].append((coc[crop] * psf.disparity(4.0) / 4).astype(np.float16))
    return {key: np.stack(value) for key, value in scenes.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with the unpacked Debian packages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, nargs=2, default=(0, 100), metavar=("FIRST", "END"))
    parser.add_argument("--every", type=int, default=1, help="render each n-th shard, for several processes")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    photos = load_photos(args.photos)
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(*args.shards, args.every):
        path = args.out / f"scenes-{number:04d}.npz"
        if path.exists():
            continue
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **render_shard(number, photos))
        os.replace(temporary, path)
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
