"""Configs of Triton's models as text of protocol buffers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Word(str):
    """The name of a constant, which stands in a config without quotes."""


Config = dict[str, Any]
"""A message of Triton's model_config.proto."""


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message of protocol buffers in the text format.

    Args:
        message: Values by the names of their fields: numbers, truth values, texts, ``Word``s, messages, and lists of
            these for repeated fields.
        indent: Begins each line.
    """
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_value(item)}\n")
    return "".join(lines)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value) if isinstance(value, Word) else json.dumps(value)  # which writes true, 1 and "text" as they do
