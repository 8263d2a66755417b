"""What a check does; apart from the check itself, so that commands declare their options at once."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["auto", "warn", "off"]

MODES: tuple[str, ...] = get_args(Mode)
"""What a check does: correct and refuse, only warn, or nothing."""
