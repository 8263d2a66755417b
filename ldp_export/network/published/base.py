"""What the published networks share: sizes, precision of their ends, and the names of their authors' parameters."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldp_export.network.published.layers import center

TAME_STD = 0.2


@dataclass(frozen=True)
class PublishedConfig:
    """What export and runtime know of a published network; the manifest stores ``to_dict``.

    Attributes:
        name: A name of ``PUBLISHED``.
        multiple: H and W are multiples of this many px.
        memory: About the most bytes that one px of the pair takes in FP32.
        least: H and W are at least this many px.
        halo: Px that neighbouring tiles share on each side of a seam, at least, so that tiles equal the full frame;
            None where the network pools or attends over all it sees, so that no tile does.
        works_at: Height and width in px that the network resizes every pair to; None where it resizes none.
        ensemble: Means nothing: these networks read no blur map.
    """

    name: str
    multiple: int
    memory: int
    least: int = 1
    halo: int | None = None
    works_at: tuple[int, int] | None = None
    ensemble: str | int = "ens2"

    @property
    def reads_blur_map(self) -> bool:
        """Never."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values: what ``ldp_runtime.stages.tiles`` reads of it."""
        works_at = {} if self.works_at is None else {"works_at": list(self.works_at)}
        return {"name": self.name, "memory": self.memory, "halo": self.halo, **works_at}


class PublishedNetwork(nn.Module, ABC):
    """A network for dual-pixel pairs by other authors.

    Attributes:
        config: Its sizes.
        adds_center: The center view is added to what ``restore`` returns, in FP32.
        linear_end: Name of the last layer where the output is proportional to its parameters; empty where it is not.
        names: Pairs of a regular expression and its replacement, which turn, in this order, a name of ``state_dict``
            into the authors'.
        ignored: Beginnings of names that the authors' file may hold besides and that nothing here reads.
    """

    config: PublishedConfig
    adds_center: ClassVar[bool] = False
    linear_end: ClassVar[str] = ""
    names: ClassVar[Sequence[tuple[str, str]]] = ()
    ignored: ClassVar[tuple[str, ...]] = ()

    def forward(self, pair: Tensor) -> Tensor:
        """Restores one batch.

        Args:
            pair: ``(B, 6, H, W)`` float32 in [0, 1], whatever the type of the weights: left RGB, right RGB.

        Returns:
            Restored image ``(B, 3, H, W)`` float32, not clamped.
        """
        restored = self.restore(pair.to(next(self.parameters()).dtype)).float()
        return restored + center(pair) if self.adds_center else restored

    @abstractmethod
    def restore(self, pair: Tensor) -> Tensor:
        """The layers: ``(B, 6, H, W)`` in the type of the weights to ``(B, 3, H, W)``."""

    @classmethod
    def fitting(cls, state: Mapping[str, Tensor]) -> PublishedNetwork:
        """The form of the network that the authors' file is of; most have one alone."""
        return cls()

    @torch.no_grad()
    def tame(self) -> None:
        """Scales the layer ``linear_end`` of random parameters so that the output has ``TAME_STD`` on noise."""
        if self.linear_end:
            side = max(64, self.config.least)
            pair = torch.rand(1, 6, side, side, generator=torch.Generator().manual_seed(0))
            spread = self.restore(pair).std()
            for parameter in self.get_submodule(self.linear_end).parameters():
                parameter.mul_(TAME_STD / spread)

    def published_name(self, key: str) -> str:
        """The authors' name of an entry of ``state_dict``."""
        for pattern, replacement in self.names:
            key = re.sub(pattern, replacement, key)
        return key

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the authors' file has to hold, its wrappers and prefixes stripped."""
        return {self.published_name(key): tuple(value.shape) for key, value in self.state_dict().items()}

    @torch.no_grad()
    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads tensors of which ``published_state`` says the names and shapes; colour and view order are turned."""
        self.load_state_dict({key: state[self.published_name(key)] for key in self.state_dict()})


def swap_colors(kernel: Tensor) -> Tensor:
    """A convolution that reads pairs as BGR, BGR, made to read RGB, RGB: ``(O, 6 and more, k, k)`` to the same shape.

    Channels from the seventh on stay.
    """
    return torch.cat([kernel[:, :3].flip(1), kernel[:, 3:6].flip(1), kernel[:, 6:]], dim=1)
