"""A CLIP with patches of 8 px, and what its tests share."""

import json
from pathlib import Path
from typing import Any

PATCH = 8
TINY: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_config(folder: Path, **changes: Any) -> str:
    path = folder / "tiny-clip.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return str(path)
