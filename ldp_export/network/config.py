"""Configurations of the LDP network, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldp_runtime.bundle.manifest import PROMPTS
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import ENSEMBLES

PRIORS = {
    "none": (False, False),
    "concat": (True, False),
    "sa": (False, True),
    "concat+sa": (True, True),
    "bpa": (False, True),
}
"""Rows of Table 6, by name: whether the blur map is one more channel of the input, whether attention blocks stand."""


class ConfigError(LDPError):
    """A network configuration does not describe a network that can be built."""


@dataclass(frozen=True)
class LDPConfig:
    """What defines an LDP network; the bundle's manifest stores it.

    Attributes:
        name: Name of the configuration.
        width: Channels at the first scale; each scale below has twice as many.
        stem: Pixel-unshuffle factor before the first convolution; 1 works at full resolution.
        encoder: NAFBlocks of each encoder level, first to last.
        middle: NAFBlocks at the deepest scale.
        decoder: NAFBlocks of each decoder level, deepest to first; as many levels as the encoder.
        bpa: Where attention blocks stand: any of "encoder" (after the last encoder level), "middle" (before the middle
            blocks), "decoder" (before the first decoder level). With the priors "none" and "concat" none stands.
        head_dim: Channels of one attention head.
        kernel: q, the side of the deblur kernel that BPA predicts for each position (Eq. 10). Keys reach ``kernel //
            2`` positions beyond a window, with the prior "sa" too.
        window: Side of a window of queries, in positions; None is the paper's global attention.
        kernel_hidden: Hidden channels of FFN_conv.
        sca_cell: Side in image pixels of one pooling cell of simplified channel attention; a multiple of the deepest
            scale's stride. None pools over the whole map, as NAFNet does.
        prior: How the network uses the blur map, a row of Table 6: "none" (NAFNet: it does not), "concat" (the blur map
            in [0, 1] is one more channel of the input), "sa" (attention blocks of Eq. 8, which do not see the blur
            map), "concat+sa" (both), "bpa" (attention blocks of Eq. 9: the paper's network).
        ensemble: What the blur logits come from, a row of Table 5: a name of ``ldp_runtime.stages.blur_map.ENSEMBLES``,
            or the index of a single prompt of Table 4. The network is trained with it, and the runtime uses the same.
    """

    name: str
    width: int
    encoder: tuple[int, ...]
    middle: int
    decoder: tuple[int, ...]
    stem: int = 1
    bpa: tuple[str, ...] = ("encoder", "middle", "decoder")
    head_dim: int = 32
    kernel: int = 7
    window: int | None = 16
    kernel_hidden: int = 32
    sca_cell: int | None = 32
    prior: str = "bpa"
    ensemble: str | int = "ens2"

    def __post_init__(self) -> None:
        for key in ("width", "stem", "head_dim", "kernel", "window", "kernel_hidden", "sca_cell"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        if not self.encoder:
            raise ConfigError("the network needs at least one level of encoder and decoder")
        if len(self.encoder) != len(self.decoder):
            raise ConfigError(f"encoder {self.encoder} and decoder {self.decoder} must have as many levels")
        if self.prior not in PRIORS:
            raise ConfigError(f"prior must be one of {', '.join(PRIORS)}, not {self.prior!r}")
        if self.prior in ("sa", "concat+sa") and not self.bpa:
            raise ConfigError(f"prior {self.prior} needs a place of bpa for its attention blocks, got none")
        if self.ensemble not in ENSEMBLES and self.ensemble not in range(PROMPTS):
            raise ConfigError(
                f"ensemble must be one of {', '.join(ENSEMBLES)} or a prompt from 0 to {PROMPTS - 1}, "
                f"not {self.ensemble!r}"
            )
        unknown = sorted(set(self.bpa) - {"encoder", "middle", "decoder"})
        if unknown:
            raise ConfigError(f"bpa may name encoder, middle and decoder, not {', '.join(unknown)}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"the BPA kernel's side must be odd, got {self.kernel}")
        if self.window is not None and self.window < self.kernel - 1:
            raise ConfigError(
                f"a window of {self.window} positions is too small for a kernel of {self.kernel}; "
                f"it needs at least {self.kernel - 1}"
            )
        for place in self.attention:
            channels = self.width * 2 ** (len(self.encoder) - (place != "middle"))
            if channels % min(self.head_dim, channels):
                raise ConfigError(f"head_dim {self.head_dim} must divide the {channels} channels of bpa {place}")
        if self.sca_cell is not None and self.sca_cell % self.stride:
            raise ConfigError(f"sca_cell {self.sca_cell} must be a multiple of the network's stride {self.stride}")

    @property
    def concatenates(self) -> bool:
        """The blur map is one more channel of the input."""
        return PRIORS[self.prior][0]

    @property
    def reads_blur_map(self) -> bool:
        """The output depends on the blur map."""
        return self.concatenates or (self.prior == "bpa" and bool(self.bpa))

    @property
    def attention(self) -> tuple[str, ...]:
        """Where attention blocks stand."""
        return self.bpa if PRIORS[self.prior][1] else ()

    @property
    def stride(self) -> int:
        """Image pixels that one position of the deepest scale covers, along one side."""
        return self.stem * 2 ** len(self.encoder)

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return max(self.stride, self.sca_cell or 1)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LDPConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: A key is unknown or a required one is missing.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown keys in the network configuration: {', '.join(unknown)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ConfigError(f"incomplete network configuration: {error}") from error


CONFIGS = {
    config.name: config
    for config in (
        LDPConfig("nano", width=32, stem=2, encoder=(1, 1, 4), middle=6, decoder=(4, 1, 1), bpa=("decoder",), window=8),
        LDPConfig("small", width=32, encoder=(2, 2, 2, 2), middle=2, decoder=(2, 2, 2, 2)),
        LDPConfig("large", width=64, encoder=(2, 2, 2, 2), middle=2, decoder=(2, 2, 2, 2), head_dim=64),
        LDPConfig(
            "fast",
            width=48,
            stem=2,
            encoder=(1, 1, 4),
            middle=6,
            decoder=(4, 1, 1),
            bpa=("decoder",),
            window=8,
            ensemble="dp-aware",
        ),
        LDPConfig(
            "fast-large",
            width=96,
            stem=2,
            encoder=(1, 1, 2),
            middle=4,
            decoder=(2, 1, 1),
            bpa=("decoder",),
            head_dim=64,
            window=8,
            ensemble="dp-aware",
        ),
    )
}
"""``small`` and ``large`` are the paper's. ``fast`` and ``fast-large`` restore at half resolution and below, with most
blocks where the map is small, and read DP-aware prompts alone, so that CLIP sees no center view; ``nano`` is a narrower
form of ``fast``."""
