"""The deblurring network. torch is loaded with ``LDPNet`` alone: commands name networks without it."""

from typing import TYPE_CHECKING, Any

from ldp_export.network.config import CONFIGS, ConfigError, LDPConfig

if TYPE_CHECKING:
    from ldp_export.network.ldp import LDPNet

__all__ = ["CONFIGS", "ConfigError", "LDPConfig", "LDPNet"]


def __getattr__(name: str) -> Any:
    if name != "LDPNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldp_export.network.ldp import LDPNet

    return LDPNet
