"""Trains ldp-nano's network on one GPU for a given time, while the other cores render its scenes.

Scenes go into a pool, whose oldest ones they replace, and training draws crops from it at random. CLIP is not run: the
blur logits are those of the true disparity with noise like CLIP's. Writes ``deblur.safetensors``, the averaged weights,
and ``deblur.log.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.simulation.scenes import SIDE, load_photos, read_photo_list, render_scene

HERE = Path(__file__).parent
PATCH = 16
TOKENS = SIDE // PATCH
CROP, BATCH, POOL, FIRST = 224, 40, 49152, 1500
LR, WARMUP, SEED = 1e-3, 300, 1


@dataclass(frozen=True, eq=False)
class Pool:
    """Scenes that several processes share.

    Attributes:
        images: ``(POOL, 9, s, s)`` uint8: left, right, target.
        blur: ``(POOL, TOKENS, TOKENS)`` float32: blur of each token in [0, 1], as ``train_clip`` has it.
    """

    images: NDArray[np.uint8]
    blur: NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path, mode: Any) -> Pool:
        """Maps the pool's files; mode "w+" makes them."""
        return cls(
            np.memmap(folder / "images", np.uint8, mode, shape=(POOL, 9, SIDE, SIDE)),
            np.memmap(folder / "blur", np.float32, mode, shape=(POOL, TOKENS, TOKENS)),
        )


def render(rank: int, folder: Path, photos: Path, names: Path, count: Synchronized[int]) -> None:
    """Renders scenes into the pool until the process is ended."""
    os.nice(19)
    cv2.setNumThreads(1)
    pool, loaded, number = Pool.open(folder, "r+"), load_photos(photos, read_photo_list(names)), 0
    while True:
        scene = render_scene(np.random.default_rng((SEED, 77, rank, number)), loaded)
        views = np.concatenate([scene[key] for key in ("left", "right", "target")], axis=2)
        disparity = np.abs(scene["disparity"].astype(np.float32))
        blurred = 1 / (1 + np.exp(-(disparity - 1) / 0.5))
        with count.get_lock():
            slot = count.value % POOL
            pool.images[slot] = views.transpose(2, 0, 1)
            pool.blur[slot] = blurred.reshape(TOKENS, PATCH, TOKENS, PATCH).mean((1, 3))
            count.value += 1
        number += 1


def train(pool: Pool, count: Synchronized[int], init: Path, out: Path, seconds: float) -> None:
    """Trains for so many seconds, from the weights of a checkpoint whose levels may have fewer blocks."""
    import torch  # after the processes were started, which do not need it
    from safetensors.torch import load_file, save_file

    from ldp_export.network import CONFIGS, LDPNet

    device = torch.device("cuda")
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark = True
    network = LDPNet(CONFIGS["nano"])
    network.load_state_dict(network.state_dict() | load_file(init / "deblur.safetensors"))
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    network.to(device).train()
    parameters: list[torch.Tensor] = list(network.parameters())
    dense = [parameter for parameter in parameters if parameter.ndim == 4 and parameter.shape[1] > 1]
    others = [parameter for parameter in parameters if parameter.ndim != 4 or parameter.shape[1] == 1]
    rate = torch.tensor(0.0, device=device)
    optimizer = torch.optim.AdamW(
        [{"params": dense, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.95),
        capturable=True,
        fused=True,
    )
    average = [parameter.detach().clone() for parameter in parameters]
    images = torch.zeros((BATCH, 9, CROP, CROP), device=device)
    logits = torch.zeros((BATCH, 1, CROP // PATCH, CROP // PATCH), device=device)
    loss = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            pair = images[:, :6].contiguous(memory_format=torch.channels_last)
            each = torch.sqrt((network(pair, logits) - images[:, 6:]).square() + 1e-6).mean((1, 2, 3))
        (each * (0.03 / (each.detach() + 0.01))).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimizer.step()
        with torch.no_grad():
            loss.lerp_(each.detach().mean(), 0.02)

    all_images = torch.zeros((POOL, 9, SIDE, SIDE), dtype=torch.uint8, device=device)
    all_blur = torch.zeros((POOL, TOKENS, TOKENS), device=device)
    copied = 0

    def copy_new_scenes() -> int:
        nonlocal copied
        ready = count.value
        while copied < ready:
            first = copied % POOL
            last = min(POOL, first + min(ready - copied, 256))
            all_images[first:last].copy_(torch.from_numpy(np.asarray(pool.images[first:last])))
            all_blur[first:last].copy_(torch.from_numpy(np.asarray(pool.blur[first:last])))
            copied += last - first
        return min(copied, POOL)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    rgb, tokens = torch.arange(3, device=device), CROP // PATCH

    def load_batch(available: int) -> None:
        """Crops on the grid of tokens, mirrored either way (a mirrored left view is a right one), colours permuted."""
        index = (rand(BATCH) * available).long()
        y, x = (rand(2, BATCH) * (TOKENS - tokens + 1)).long()
        up, mirror, permute = rand(3, BATCH) < 0.5

        def along(start: torch.Tensor, flip: torch.Tensor, unit: int) -> torch.Tensor:
            forward = start[:, None] * unit + torch.arange(tokens * unit, device=device)
            return torch.where(flip[:, None], forward.flip(1), forward)

        order = torch.where(permute[:, None], torch.argsort(rand(BATCH, 3), 1), rgb)
        left, right = (torch.where(m[:, None], order + 3, order) for m in (mirror, ~mirror))
        channels = torch.cat([left, right, order + 6], 1)
        rows, columns = along(y, up, PATCH), along(x, mirror, PATCH)
        places = (channels[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :])
        images.copy_(all_images[(index[:, None, None, None], *places)])
        images.mul_(1 / 255)
        rows, columns = along(y, up, 1), along(x, mirror, 1)
        blur = all_blur[index[:, None, None], rows[:, :, None], columns[:, None, :]].clamp(0.03, 0.97)
        z = torch.log(blur / (1 - blur)) * (0.4 + 0.55 * rand(BATCH, 1, 1)) + 0.25 + 0.7 * randn(BATCH, 1, 1)
        smooth = torch.nn.functional.interpolate(randn(BATCH, 1, 7, 7), size=(tokens, tokens), mode="bilinear")[:, 0]
        z = (z + 0.5 * smooth + 0.25 * randn(BATCH, tokens, tokens)) * (rand(BATCH, 1, 1) > 0.1)
        logits.copy_(z[:, None])

    while count.value < FIRST:
        time.sleep(0.2)
    available = copy_new_scenes()
    load_batch(available)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # at a learning rate of 0
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    began, number = time.time(), 0
    with (out / "deblur.log.jsonl").open("w") as log:
        while (progress := (time.time() - began) / seconds) < 1:
            cosine = max(0.002, 0.5 * (1 + math.cos(math.pi * progress)))
            rate.fill_(LR * min(1, (number + 1) / WARMUP) * cosine)
            load_batch(available)
            graph.replay()
            number += 1
            if number % 4 == 0:
                horizon = min(max(0.03 * number / max(progress, 0.02), 100), 4000, number / 4 + 10)
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, min(1.0, 4 / horizon))
            if number % 50 == 0:
                available = copy_new_scenes()
            if number % 1000 == 0:
                record = {"step": number, "loss": round(float(loss), 5), "lr": float(rate), "scenes": count.value}
                if not math.isfinite(record["loss"]):
                    raise SystemExit(f"expected a finite loss, got {record['loss']} by step {number}; lower LR")
                log.write(json.dumps(record | {"seconds": round(time.time() - began, 1)}) + "\n")
                log.flush()
    names = [name for name, _ in network.named_parameters()]
    save_file(
        {name: value.cpu().contiguous() for name, value in zip(names, average, strict=True)}, out / "deblur.safetensors"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of the photographs")
    parser.add_argument("--list", type=Path, default=HERE / "photos.txt", help="which of them")
    parser.add_argument("--init", type=Path, default=Path("models/checkpoints/ldp-nano"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=450, help="of training (default: 450)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shared = Path("/dev/shm")
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder, count = Path(name), context.Value("q", 0)
        pool = Pool.open(folder, "w+")
        workers = [
            context.Process(target=render, args=(rank, folder, args.photos, args.list, count), daemon=True)
            for rank in range(max(1, (os.cpu_count() or 2) - 2))
        ]
        for worker in workers:
            worker.start()
        try:
            train(pool, count, args.init, args.out, args.seconds)
        finally:
            for worker in workers:
                worker.kill()


if __name__ == "__main__":
    main()
