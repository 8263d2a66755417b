"""Trains ldp-nano's deblurring network on the rendered scenes, with blur logits from the trained CLIP.

Charbonnier loss (Eq. 11), AdamW with warm-up and cosine decay, bf16 autocast, EMA. CLIP sees each scene once; its
logits are cached and cropped with the patches, which lie on the patch grid. A horizontal flip swaps the views. Training
resumes from `OUT/deblur.state.pt` and splits each batch over `WORLD_SIZE` processes (torchrun) of one thread each.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from bank import load, shards
from safetensors.torch import save_file
from torch import Tensor, nn
from train_clip import WINDOW

from ldp_export.blur_map import blur_logits, center_view, stereo_canvas
from ldp_export.clip import PROMPTS, embed_texts, load_clip
from ldp_export.network import CONFIGS, LDPNet

HERE = Path(__file__).parent
PATCH_SIDE = 128
STEP = 32


def cache_logits(bank: dict[str, np.ndarray], clip_folder: Path) -> np.ndarray:
    """Blur logits `(n, H / p, W / p)` float16 of all scenes, from windows that tile each scene."""
    clip = load_clip(str(HERE / "clip.json"), str(clip_folder / "clip.safetensors"))
    prompts = json.loads((clip_folder / "calibration.json").read_text())
    offsets, temperatures = (torch.tensor([p[key] for p in prompts]) for key in ("offset", "temperature"))
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.mean, clip.std))
    encoder, cached = clip.encoder, []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        texts = embed_texts(clip, [prompt.text for prompt in PROMPTS])
        for start in range(0, len(bank["left"]), 8):
            index = np.s_[start : start + 8]
            views = (
                (torch.from_numpy(bank[key][index]).permute(0, 3, 1, 2).float() / 255 - mean) / std
                for key in ("left", "right")
            )
            left, right = (
                view.unflatten(2, (-1, WINDOW)).unflatten(4, (-1, WINDOW)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
                for view in views
            )
            z = blur_logits(
                encoder(stereo_canvas(left, right)),
                encoder(center_view(left, right)),
                texts,
                [prompt.format == "dp-aware" for prompt in PROMPTS],
                offsets,
                temperatures,
            )
            side = bank["left"].shape[1] // WINDOW
            z = z.reshape(-1, side, side, *z.shape[2:]).permute(0, 1, 3, 2, 4).flatten(1, 2).flatten(2)
            cached.append(z.float().numpy().astype(np.float16))
    return np.concatenate(cached)


def charbonnier(restored: Tensor, target: Tensor) -> Tensor:
    """Eq. 11 with eps = 1e-4, over the three channels of a pixel; the mean over pixels."""
    return torch.sqrt(((restored - target) ** 2).sum(1) + 1e-8).mean()


def draw(bank: dict[str, np.ndarray], logits: np.ndarray, rng: np.random.Generator, count: int) -> list[Tensor]:
    """A batch: pair `(B, 6, s, s)`, blur logits `(B, 1, s / p, s / p)`, target `(B, 3, s, s)`, float32 in [0, 1]."""
    grid = bank["left"].shape[1] // logits.shape[1]
    samples: list[list[np.ndarray]] = [[], [], [], []]
    for scene in rng.integers(len(logits), size=count):
        top, left = rng.integers((bank["left"].shape[1] - PATCH_SIDE) // STEP + 1, size=2) * STEP
        crop = np.s_[scene, top : top + PATCH_SIDE, left : left + PATCH_SIDE]
        side = PATCH_SIDE // grid
        z = logits[scene, top // grid : top // grid + side, left // grid : left // grid + side]
        arrays = [bank["left"][crop], bank["right"][crop], bank["target"][crop], z]
        if rng.random() < 0.5:
            arrays = [array[:, ::-1] for array in arrays]
            arrays[0], arrays[1] = arrays[1], arrays[0]
        if rng.random() < 0.5:
            arrays = [array[::-1] for array in arrays]
        if rng.random() < 0.5:
            channels = rng.permutation(3)
            arrays = [array[..., channels] for array in arrays[:3]] + [arrays[3]]
        for sample, array in zip(samples, arrays, strict=True):
            sample.append(array)
    left, right, target, z = (torch.from_numpy(np.stack(sample)) for sample in samples)
    pair = torch.cat([left, right], dim=3).permute(0, 3, 1, 2).float() / 255  # channels last in memory
    return [pair, z.float()[:, None], target.permute(0, 3, 1, 2).float() / 255]


def validate(net: nn.Module, bank: dict[str, np.ndarray], logits: np.ndarray) -> dict[str, float]:
    """Mean PSNR in dB over held-out patches, of the center view and of the restoration."""
    pair, z, target = draw(bank, logits, np.random.default_rng(0), 96)
    center, restored = [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(pair), 16):
            guess = net(pair[i : i + 16], z[i : i + 16]).clamp(0, 1)
            middle = (pair[i : i + 16, :3] + pair[i : i + 16, 3:]) / 2
            for image, scores in ((guess, restored), (middle, center)):
                scores.append(-10 * torch.log10(((image - target[i : i + 16]) ** 2).mean((1, 2, 3)) + 1e-8))
    before, after = torch.cat(center).mean().item(), torch.cat(restored).mean().item()
    return {"center_db": round(before, 3), "restored_db": round(after, 3), "gain_db": round(after - before, 3)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True, help="folder with clip.safetensors and calibration.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="nano", choices=sorted(CONFIGS))
    parser.add_argument("--until", type=float, required=True, help="Unix time at which training ends")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
        os.sched_setaffinity(0, {rank})
    keys = ("left", "right", "target")
    held_out, bank = (load(shards(args.scenes, held_out=flag), keys) for flag in (True, False))
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / f"logits-{len(bank['left'])}.npy"
    if rank == 0 and not cache.exists():
        np.save(cache, np.concatenate([cache_logits(held_out, args.clip), cache_logits(bank, args.clip)]))
    if world > 1:
        dist.barrier()
    held_out_logits, logits = np.split(np.load(cache), [len(held_out["left"])])

    torch.manual_seed(args.seed)
    net = LDPNet(CONFIGS[args.config]).to(memory_format=torch.channels_last)
    ema = copy.deepcopy(net).eval()
    decay = [p for p in net.parameters() if p.ndim == 4 and p.shape[0] > 1]
    rest = [p for p in net.parameters() if not (p.ndim == 4 and p.shape[0] > 1)]
    groups = [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    step, spent, state_file = 0, 0.0, args.out / "deblur.state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    rng = np.random.default_rng((args.seed, step, rank))
    log = (args.out / "deblur.log.jsonl").open("a")
    started, first = time.time(), step
    clock = torch.tensor([started], dtype=torch.float64)
    losses: list[float] = []

    def save() -> None:
        weights = {"net": net.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        temporary = state_file.with_suffix(".tmp")
        torch.save(weights | {"step": step, "seconds": spent + time.time() - started}, temporary)
        os.replace(temporary, state_file)
        save_file({k: v.contiguous() for k, v in ema.state_dict().items()}, args.out / "deblur.safetensors")

    while True:
        now = torch.tensor([time.time()], dtype=torch.float64)
        if world > 1 and step % 10 == 0:
            dist.broadcast(now, 0)
            clock = now
        elif world == 1:
            clock = now
        if clock.item() >= args.until:
            break
        progress = (spent + clock.item() - started) / (spent + args.until - started)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, progress)))
        lr = args.lr * min(1, (step + 1) / 200) * (0.005 + 0.995 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pair, z, target = draw(bank, logits, rng, args.batch // world)
        with torch.autocast("cpu", torch.bfloat16):
            restored = model(pair, z)
        loss = charbonnier(restored, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(0.998, 1 - 1 / (step + 1))
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - keep)
        losses.append(loss.item())
        if rank == 0 and step % 250 == 0:
            seconds = time.time() - started
            record = {"step": step, "loss": round(float(np.mean(losses)), 5), "lr": round(lr, 7)}
            rate = (step - first) * args.batch / seconds
            record |= {"patches_s": round(rate, 1), "seconds": round(spent + seconds)}
            losses.clear()
            if step % 1000 == 0:
                record |= validate(ema, held_out, held_out_logits)
                save()
            log.write(json.dumps(record) + "\n")
            log.flush()
    if rank == 0:
        log.write(json.dumps({"step": step, "end": True, **validate(ema, held_out, held_out_logits)}) + "\n")
        log.close()
        save()


if __name__ == "__main__":
    main()
