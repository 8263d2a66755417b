"""What a check does; apart from the check itself, so that commands declare their options at once."""

from __future__ import annotations

MODES = ("auto", "warn", "off")
"""What a check does: correct and refuse, only warn, or nothing."""
