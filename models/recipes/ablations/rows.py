"""The runs of the ablation at small scale: their rows, networks, length and schedule."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ldp_export.checkpoint import CLIP_FILE, Checkpoint, save_checkpoint
from ldp_export.clip import PROMPTS
from ldp_export.data.simulated import NAME
from ldp_export.network import CONFIGS, LDPConfig, LDPNet
from ldp_export.training import DataConfig, StageConfig, TrainConfig, read_config
from ldp_export.training.losses import LossConfig
from ldp_runtime.errors import LDPError

FOLDER = Path(__file__).parent
TABLE6 = {
    "table6-nafnet": "NAFNet",
    "table6-concat": "Concat",
    "table6-sa": "SA",
    "table6-concat-sa": "Concat + SA",
    "table6-bpa": "BPA block",
}
MAIN = ("table6-bpa", "table6-nafnet", "table6-concat")
"""The main comparison: the block, no prior, the blur map as a channel."""

TABLE5: dict[str, str | int] = {
    **{f"{prompt.format} p{k % 4 + 1}": k for k, prompt in enumerate(PROMPTS)},
    "blur-aware Ens.1": "ens1-blur-aware",
    "dp-aware Ens.1": "ens1-dp-aware",
    "Ens.2": "ens2",
}

DESIGNS = {"design-small": "small", "design-fast": "fast"}
"""Row -> the config whose narrow form it is: a quarter of its channels."""

NARROWER = 4
CROP, BATCH = 128, 4


class AblationError(LDPError):
    """The ablation cannot run with these options."""


@dataclass(frozen=True)
class Options:
    """Settings of all runs.

    Attributes:
        scenes: Folder of shards; its first shards are held out.
        checkpoint: What all rows of Table 6 start from, without its attention blocks; and CLIP with its calibration.
        work: Folder of the runs.
        steps: Steps of each run of Table 6.
        design_steps: Row of ``DESIGNS`` -> steps of its runs.
        crop: Side of the crops in px.
        batch: Crops per step.
        precision: Arithmetic of the training: "fp32", or "bf16", which is faster where the CPU has such arithmetic.
        threads: CPU threads.
    """

    scenes: Path
    checkpoint: Path
    work: Path
    steps: int
    design_steps: dict[str, int]
    crop: int = CROP
    batch: int = BATCH
    precision: str = "fp32"
    threads: int = 1

    def plan(self, row: str, seed: int) -> TrainConfig:
        """The run of a row.

        Raises:
            LDPError: ``checkpoint`` is no checkpoint.
        """
        network = self.network(row)
        if row in DESIGNS:
            steps, rate, start = self.design_steps[row], 1e-3, None
        else:
            steps, rate, start = self.steps, 5e-4, str(self.start(network.prior, seed))
        losses = LossConfig(charbonnier=0, psnr=0.1)
        return TrainConfig(
            name=row,
            stages=(StageConfig(steps, lr=rate, final_lr=1e-6, warmup=min(50, steps // 10), losses=losses),),
            data=(DataConfig(NAME, str(self.scenes)),),
            network=network.to_dict(),
            init=start,
            clip=str(self.checkpoint),
            blur_logits="disparity",
            seed=seed,
            crop=self.crop,
            batch=self.batch,
            permute_channels=True,
            betas=(0.9, 0.95),
            ema=0.99,
            clip_gradient=0.3,
            precision="fp32" if row in DESIGNS else self.precision,  # with so few channels bf16 is slower
            device="cpu",
            threads=self.threads,
            log_every=min(50, steps),
            save_every=100,
        )

    def network(self, row: str) -> LDPConfig:
        """The network of a row: that of ``checkpoint`` with the prior of the row's file, or a narrow config."""
        if row in DESIGNS:
            config = CONFIGS[DESIGNS[row]]
            width, head = config.width // NARROWER, config.head_dim // NARROWER
            return dataclasses.replace(config, name=row, width=width, head_dim=head)
        paper = read_config(FOLDER / f"{row}.yaml").network_config()
        assert paper is not None  # every row's file names one
        return dataclasses.replace(Checkpoint.open(self.checkpoint).config(), prior=paper.prior)

    def folder(self, row: str, seed: int) -> Path:
        """The folder of a run."""
        return self.work / f"{row}-{seed}"

    def start(self, prior: str, seed: int) -> Path:
        """The folder of the checkpoint that the rows with a prior start from."""
        return self.work / f"start-{prior}-{seed}"

    def write_start(self, prior: str, seed: int) -> None:
        """Writes what the rows with a prior start from: the weights of ``checkpoint`` without its attention blocks.

        What the prior adds is new: attention blocks begin as the identity, and weights of the blur map as a channel
        with zero, so that all rows start from one function.
        """
        folder = self.start(prior, seed)
        if folder.is_dir():
            return
        given = Checkpoint.open(self.checkpoint)
        config = dataclasses.replace(given.config(), prior=prior)
        old = {name: value for name, value in given.network().state_dict().items() if not name.startswith("bpa.")}
        torch.manual_seed(seed)
        network = LDPNet(config)
        if config.concatenates:
            wide = torch.zeros_like(network.intro.weight)  # the blur map's channels come last
            wide[:, : old["intro.weight"].shape[1]] = old["intro.weight"]
            old["intro.weight"] = wide
        save_checkpoint(
            folder,
            config=config,
            network=network.state_dict() | old,
            clip_config=json.loads((given.path / CLIP_FILE).read_text(encoding="utf-8")),
            clip=given.clip().model.state_dict(),
            prompts=given.prompts(),
            training={"name": folder.name, "deblur": {"from": given.name}},
        )
