"""Miniature data sets in the published layouts."""

import pickle
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from ldp_export.data import PairDataset, iterate
from ldp_export.data.simulated import FIELDS

DPD_BLUR_TEST = tuple(
    re.findall(
        r"\d+",
        """
        0917 0933 0960 0972 0984 0994 1002 1007 1046 1063 1067 1112 1434 1442 1444 1456 1488 1526 1532 1587
        1589 1591 1600 1604 1614 1643 1647 1651 1655 1696 1717 1723 1734 1740 1772 1781 1810 1811 1834 1890
        1910 1916 1924 1932 1973 1979 1983 1987 1992 2003 2014 2030 2066 2074 2098 2151 2154 2163 2170 2177
        2202 2206 2239 2258 2261 2317 2350 2357 2358 2372 2397 2414 2417 2501 2513 2521""",
    )
)
"""Numbers of the 76 test photos."""

_TARGET_BEFORE = frozenset(
    re.findall(
        r"\d+",
        """
        0917 0933 0960 0972 1002 1046 1112 1696 1772 1810 1834 1987 2003 2154 2170 2177 2202 2206 2261 2317 2350 2357
        2372 2414 2417 2521""",
    )
)


def noise(shape: Sequence[int], seed: int, dtype: type = np.uint8) -> NDArray[np.generic]:
    """Random pixels over the whole range of the dtype."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, tuple(shape)).astype(dtype)


def _seed(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def write_image(path: Path, pixels: NDArray[np.generic]) -> None:
    """Writes grey or RGB pixels in their own depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    assert cv2.imwrite(str(path), np.ascontiguousarray(stored))


def write_pfm(path: Path, values: NDArray[np.float32]) -> None:
    """Writes a grey PFM file, lowest row first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    path.write_bytes(head + np.ascontiguousarray(values[::-1], "<f4").tobytes())


def make_dpd_blur(root: Path, split: str, numbers: Sequence[str], size: tuple[int, int] = (8, 12)) -> Path:
    """``dd_dp_dataset_canon`` with these photos in a split, 16 bit."""
    folder = root / "dd_dp_dataset_canon"
    for i, number in enumerate(numbers):
        step = -1 if number in _TARGET_BEFORE else 2 if number == "1983" else 1
        for part, name in (
            (f"{split}_l/source", f"1P0A{number}_L"),
            (f"{split}_r/source", f"1P0A{number}_R"),
            (f"{split}_c/source", f"1P0A{number}"),
            (f"{split}_c/target", f"1P0A{int(number) + step:04d}"),
        ):
            write_image(folder / part / f"{name}.png", noise((*size, 3), _seed(part, i), np.uint16))
    return folder


def make_rdpd(root: Path, split: str, sequences: int = 5, frames: int = 2) -> Path:
    """``dd_dp_dataset_synth_vid`` with a split, 8 bit."""
    folder = root / "dd_dp_dataset_synth_vid"
    parts = [f"{split}_{end}" for end in ("l/source", "r/source", "c/source", "c/target")]
    for s in range(1, sequences + 1):
        for f in range(frames):
            for part in parts:
                write_image(folder / part / f"seq_{s:03d}" / f"{f:07d}.png", noise((8, 12, 3), _seed(part, s, f)))
    return folder


def make_ddd_syn(root: Path, parts: dict[str, Sequence[int]]) -> Path:
    """``NYU`` with these scenes in its folders; the disparity of a scene is its number mod 7, minus 3, and a ramp."""
    folder = root / "NYU"
    for part, numbers in parts.items():
        for number in numbers:
            for kind, name in (("dp", "l"), ("dp", "r"), ("gt", "m")):
                pixels = noise((8, 12, 3), _seed(part, number, name))
                write_image(folder / part / kind / f"{number:04d}_{name}.png", pixels)
            ramp = np.float32(number % 7 - 3) + np.arange(96, dtype=np.float32).reshape(8, 12) / 96
            for name in ("dl", "dm"):
                write_pfm(folder / part / "disp" / f"{number:04d}_{name}.pfm", ramp)
    return folder


def make_dpd_disp(root: Path, count: int = 2) -> Path:
    """The folder ``Quantitative``."""
    folder = root / "Quantitative"
    for i in range(1, count + 1):
        for view in "BLR":
            write_image(folder / f"{i:03d}_{view}.jpg", noise((8, 12, 3), 10 * i + ord(view)))
        tifffile.imwrite(folder / f"{i:03d}_D.TIF", noise((8, 12), i))
    return folder


def make_pixel_dp(root: Path, count: int = 1, size: tuple[int, int] = (12, 20)) -> Path:
    """``DP_data_pixel_4`` with frames of ``size``; targets and maps have that size too."""
    folder = root / "DP_data_pixel_4"
    sheet = np.full(size, 9000, np.uint16)
    write_image(folder / "calibration" / "white_sheet_left.png", sheet)
    write_image(folder / "calibration" / "white_sheet_right.png", (1024 + (sheet - 1024) // 2).astype(np.uint16))
    for i in range(1, count + 1):
        for view in ("left", "right"):
            raw = np.random.default_rng(i).integers(900, 2**14, size).astype(np.uint16)
            write_image(folder / f"{i:03d}_{view}.png", raw)
        write_image(folder / "gt_all_in_focus_im" / f"{i:03d}_gt.png", noise(size, i, np.uint16))
        write_image(folder / "gt_defocus_map" / f"{i:03d}_gt.png", noise(size, 50 + i))
    return folder


def make_scenes(folder: Path, shards: int = 3, scenes: int = 3, size: tuple[int, int] = (32, 48)) -> Path:
    """Shards of scenes: a blurred half whose center view is darker than the target."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        target = noise((scenes, *size, 3), shard)
        left = np.clip(target.astype(np.int16) - 3, 0, 255).astype(np.uint8)
        right = np.clip(target.astype(np.int16) - 5, 0, 255).astype(np.uint8)
        coc = np.zeros((scenes, *size), np.float16)
        coc[:, :, size[1] // 2 :] = np.linspace(2.5, 5, size[1] - size[1] // 2)
        arrays = dict(zip(FIELDS, (left, right, target, coc, -coc / 2), strict=True))
        np.savez(folder / f"scenes-{shard:04d}.npz", **arrays)  # type: ignore[arg-type]
    return folder


def read_rgb(path: Path) -> np.ndarray:
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded[..., ::-1]


def check_promises(dataset: PairDataset, count: int) -> None:
    """What every data set promises."""
    assert len(dataset) == len(dataset.names()) == len(set(dataset.names())) == count
    for name, sample in zip(dataset.names(), iterate(dataset), strict=True):
        assert sample.name == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    for index in (-1, count):
        with pytest.raises(IndexError):
            dataset[index]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.names() == dataset.names()
    assert np.array_equal(again[count - 1].left, dataset[count - 1].left)
