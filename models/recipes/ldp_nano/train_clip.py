"""Trains ldp-nano's CLIP contrastively on simulated DP pairs and captions.

Every patch token meets sixteen captions: the eight prompts of the paper's Table 4 and their opposites. Token and
caption form a positive pair in the measure in which the caption is true there, and the loss is the sigmoid contrastive
loss of SigLIP over all such pairs. Blur-aware captions read the center view; DP-aware captions read alpha of the
stereo canvas (Eq. 5). A token's blur is the mean over its pixels of ``sigmoid((|disparity| - 1 px) / 0.5 px)``, so 1/2
at the paper's threshold.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ldp_export.blur_map import alpha, center_view, similarity, stereo_canvas
from ldp_export.clip import OPPOSITES, PROMPTS, DenseCLIP, LoadedClip, embed_texts, load_clip
from models.recipes.ldp_nano.bank import load, shards

HERE = Path(__file__).parent
WINDOW = 128
TEXTS = [prompt.text for prompt in (*PROMPTS, *OPPOSITES)]
# Captions in the order of TEXTS: four blurry, four symmetrical, four sharp, four asymmetrical.
IS_DP_AWARE = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
TRUE_WHERE_BLURRED = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)


@torch.no_grad()
def start_comparing_mirror_images(encoder: DenseCLIP, sharp: Tensor) -> None:
    """Starts an ordinary ViT where symmetry is easy to learn; all weights are trained from there.

    A small transformer finds "this patch equals its mirror image over there" only after very long training, so the
    first block starts as that comparison. Channels: 80 cosine patterns of the patch's luminance (as in JPEG's
    transform), the same again, and 32 for the position. The attention of block 0 looks from each token of the canvas
    at its mirror image and subtracts it from the second 80 channels; mirroring a patch only flips signs of its
    coefficients. The MLP starts as the magnitudes of all of them.

    Args:
        encoder: The encoder to initialise; its width is 192.
        sharp: Normalised sharp images ``(B, 3, s, s)``, on which the patterns are whitened.
    """
    visual, patch = encoder.visual, encoder.patch
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    frequencies = (0, 1, 2, 3, 4, 6, 8, 11, 14)
    pairs = [(u, v) for u in frequencies for v in frequencies][1:]
    waves = torch.cos(torch.arange(patch)[:, None] * place)  # (frequency, place)
    patterns = torch.stack([(waves[u][:, None] * waves[v]).expand(3, -1, -1) for u, v in pairs])
    mirror_sign = torch.tensor([(-1.0) ** v for _, v in pairs])
    count = len(pairs)
    visual.conv1.weight.zero_()
    visual.conv1.weight[:count] = patterns
    visual.conv1.weight[:count] *= 0.3 / visual.conv1(sharp)[:, :count].std((0, 2, 3))[:, None, None, None]
    visual.conv1.weight[count : 2 * count] = visual.conv1.weight[:count]

    height, width = visual.grid_size
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    distance = torch.where(x < width // 2, width // 2 - 1 - x, x - width // 2)
    side = torch.where(x < width // 2, 1.0, -1.0)
    rows, columns = F.one_hot(y, height) * 6.0, F.one_hot(distance, width // 2) * 6.0
    visual.positional_embedding.mul_(0.1)
    visual.positional_embedding[1:, 2 * count : 2 * count + height + width // 2] += torch.cat([rows, columns], dim=1)
    visual.positional_embedding[1:, -4:] += 3 * side[:, None]

    block = visual.transformer.resblocks[0]
    channels, head = visual.conv1.out_channels, block.attn.head_dim
    weight = block.attn.in_proj_weight
    query, key, value = weight[:channels], weight[channels : 2 * channels], weight[2 * channels :]
    for part in (query, key):
        part.mul_(0.1)
        for first in range(0, channels, head):
            part[first : first + head, 2 * count :] += torch.eye(head)[:, : channels - 2 * count]
            if part is query:
                part[first + head - 4 : first + head, -4:] *= -1
    value.mul_(0.1)
    value[:count, :count] += torch.diag(mirror_sign)
    block.attn.out_proj.weight.mul_(0.1)
    block.attn.out_proj.weight[count : 2 * count, :count] -= torch.eye(count)
    block.mlp.c_fc.weight[: 2 * count, : 2 * count] += 4 * torch.eye(2 * count)
    block.mlp.c_fc.weight[2 * count : 4 * count, : 2 * count] -= 4 * torch.eye(2 * count)
    for norm in [visual.ln_post, *(n for b in visual.transformer.resblocks[1:] for n in (b.ln_1, b.ln_2))]:
        norm.weight[2 * count :] = 0.1


def blur_of_tokens(disparity: Tensor, patch: int) -> Tensor:
    """``(B, H, W)`` disparity in pixels to ``(B, H / patch, W / patch)`` blur in [0, 1]."""
    return F.avg_pool2d(torch.sigmoid((disparity.abs() - 1) / 0.5)[:, None], patch)[:, 0]


def token_similarities(encoder: DenseCLIP, left: Tensor, right: Tensor, texts: Tensor) -> Tensor:
    """Cosines ``(B, gh, gw, 16)`` of each token with each caption, from the input that the caption reads."""
    of_canvas = similarity(alpha(encoder(stereo_canvas(left, right))), texts)
    of_center = similarity(encoder(center_view(left, right)), texts)
    return torch.where(IS_DP_AWARE, of_canvas, of_center)


def logits_of(clip: LoadedClip, cosines: Tensor) -> Tensor:
    """Cosines by the trained scale, at most 100, and bias."""
    scale, bias = (clip.model.get_parameter(f"logit_{name}") for name in ("scale", "bias"))
    return cosines * scale.exp().clamp(max=100) + bias


def batch_of(
    bank: dict[str, np.ndarray], index: np.ndarray, clip: LoadedClip, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One random window of each scene: normalised left and right views ``(B, 3, s, s)`` and disparity ``(B, s, s)``."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.mean, clip.std))
    corners = rng.integers(bank["left"].shape[1] - WINDOW + 1, size=(len(index), 2))
    crops = [np.s_[scene, y : y + WINDOW, x : x + WINDOW] for scene, (y, x) in zip(index, corners, strict=True)]
    left, right = (
        (torch.from_numpy(np.stack([bank[key][crop] for crop in crops])).permute(0, 3, 1, 2).float() / 255 - mean) / std
        for key in ("left", "right")
    )
    disparity = np.stack([bank["disparity"][crop] for crop in crops]).astype(np.float32)
    return left, right, torch.from_numpy(disparity)


def validate(clip: LoadedClip, bank: dict[str, np.ndarray]) -> dict[str, float]:
    """Balanced accuracy over tokens of each format at the threshold, from the trained scale and bias."""
    encoder, votes, truth = clip.encoder, [], []
    rng = np.random.default_rng(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        texts = embed_texts(clip, TEXTS)
        for start in range(0, len(bank["left"]), 16):
            index = np.arange(start, min(start + 16, len(bank["left"])))
            left, right, disparity = batch_of(bank, index, clip, rng)
            cosines = token_similarities(encoder, left, right, texts).float()
            z = logits_of(clip, cosines)
            votes.append(torch.stack([z[..., 0:4].mean(-1), -z[..., 4:8].mean(-1)], -1))
            truth.append(blur_of_tokens(disparity, encoder.patch))
    predicted, blurred = torch.cat(votes) > 0, torch.cat(truth) > 0.5
    ensemble = torch.cat(votes).mean(-1) > 0
    scores = {}
    for name, guess in (("blur", predicted[..., 0]), ("dp", predicted[..., 1]), ("ens2", ensemble)):
        found, kept = (guess & blurred).sum() / blurred.sum(), (~guess & ~blurred).sum() / (~blurred).sum()
        scores[name] = 0.5 * float(found + kept)
    return scores


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for clip.safetensors and clip.log.jsonl")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=20, help="windows, each of another scene")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to go on from, with a new cosine")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    clip = load_clip(str(HERE / "clip.json"), args.start and str(args.start), seed=args.seed)
    encoder = clip.encoder
    held_out = load(shards(args.scenes, held_out=True))
    if args.start is None:
        sharp, _, _ = batch_of({**held_out, "left": held_out["target"]}, np.arange(64), clip, rng)
        start_comparing_mirror_images(encoder, sharp)
    model = clip.model.train()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    available = shards(args.scenes, held_out=False)
    bank = load(available)
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "clip.log.jsonl").open("a")
    started = time.time()
    for step in range(args.steps):
        if step % 200 == 199:  # scenes may still be rendering
            found = shards(args.scenes, held_out=False)
            if len(found) > len(available):
                available, bank = found, load(found)
        warm = min(1, (step + 1) / 100)
        lr = args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        left, right, disparity = batch_of(bank, rng.integers(len(bank["left"]), size=args.batch), clip, rng)
        if rng.random() < 0.5:  # a mirrored scene swaps the views
            left, right, disparity = right.flip(3), left.flip(3), disparity.flip(2)
        if rng.random() < 0.5:
            left, right, disparity = left.flip(2), right.flip(2), disparity.flip(1)
        with torch.autocast("cpu", torch.bfloat16):
            cosines = token_similarities(encoder, left, right, embed_texts(clip, TEXTS))
        logits = logits_of(clip, cosines.float())
        blur = blur_of_tokens(disparity, encoder.patch)[..., None]
        loss = F.binary_cross_entropy_with_logits(logits, torch.where(TRUE_WHERE_BLURRED, blur, 1 - blur))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            record = {"step": step, "loss": round(loss.item(), 4), "lr": round(lr, 6), "scenes": len(bank["left"])}
            record["seconds"] = round(time.time() - started)
            if step % 500 == 0 or step == args.steps - 1:
                record |= {f"balanced_{k}": round(v, 4) for k, v in validate(clip, held_out).items()}
            log.write(json.dumps(record) + "\n")
            log.flush()
        if step % 500 == 499 or step == args.steps - 1:
            state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
            save_file(state, args.out / "clip.safetensors")


if __name__ == "__main__":
    main()
