"""Training of the deblurring network (paper, Section 3.3 and 4), on Lightning Fabric."""

from ldp_export.training.config import (
    DataConfig,
    StageConfig,
    TrainConfig,
    TrainingError,
    ValidationConfig,
)
from ldp_export.training.config_file import read_config
from ldp_export.training.loop import train

__all__ = [
    "DataConfig",
    "StageConfig",
    "TrainConfig",
    "TrainingError",
    "ValidationConfig",
    "read_config",
    "train",
]
