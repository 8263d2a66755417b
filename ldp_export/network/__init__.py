"""The deblurring network."""

from ldp_export.network.config import CONFIGS, ConfigError, LDPConfig
from ldp_export.network.ldp import LDPNet

__all__ = ["CONFIGS", "ConfigError", "LDPConfig", "LDPNet"]
