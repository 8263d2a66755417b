"""Reading a training configuration: YAML that may extend other YAML, and overrides of single keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ldp_export.training.config import TrainConfig, TrainingError, check_config
from ldp_runtime.files import cannot_read


class _Loader(yaml.SafeLoader):
    """YAML 1.1 in which 2e-4 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z"), [*"-+0123456789"]
)


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a configuration.

    Args:
        path: YAML with the keys of ``TrainConfig``. With ``extends: FILE``, relative to it, it holds changes to that
            configuration alone: mappings are merged, a mapping of places such as ``{1: ...}`` changes these entries of
            a list, and all else is replaced.
        overrides: ``KEY=VALUE`` each: a dotted key such as ``stages.0.steps``, and YAML.

    Raises:
        TrainingError: The file cannot be read, or a key is unknown, missing or has a value that does not fit; the
            message names the key.
    """
    values = _read_values(path, ())
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise TrainingError(f"expected --set KEY=VALUE, got {override!r}; for example --set stages.0.steps=1000")
        values = _put(values, key.split("."), _parsed(text, f"--set {key}"), key)
    try:
        return check_config(values)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error


def _parsed(text: str, where: str) -> Any:
    """Parsed YAML, in which 2e-4 is a number as in YAML 1.2.

    Raises:
        TrainingError: It is none.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise TrainingError(f"{where}: expected YAML, got {' '.join(str(error).split())}; fix it") from error


def _read_values(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """The parsed YAML of a file, over that of the file that it extends; ``before`` are those that extend this one."""
    try:
        values = _parsed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise TrainingError(cannot_read(path, error)) from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: expected YAML in UTF-8, got other bytes ({error}); save it so") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected keys and values, got {type(values).__name__}; fix it")
    if (extended := values.pop("extends", None)) is None:
        return values
    if not isinstance(extended, str):
        raise TrainingError(f"{path}: extends: expected the name of a file, got {extended!r}")
    chain = (*before, path.resolve())
    base = path.parent / extended
    if base.resolve() in chain:
        raise TrainingError(f"{path}: extends: expected another file, got {extended}, which extends this one")
    return _merged(_read_values(base, chain), values)


def _merged(base: dict[Any, Any], changed: dict[Any, Any]) -> dict[Any, Any]:
    """``base`` with the values of ``changed``, mappings merged in turn; see ``read_config``."""
    merged = dict(base)
    for key, value in changed.items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, dict) and all(place in range(len(old)) for place in value):
            merged[key] = list(_merged(dict(enumerate(old)), value).values())
        else:
            merged[key] = _merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _put(old: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """Nested mappings and lists with a value at a path; mappings are made where they lack."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(old, list):
        if not name.isdigit() or int(name) >= len(old):
            raise TrainingError(f"--set {key}: expected a number from 0 to {len(old) - 1}, got {name!r}")
        return [_put(item, rest, value, key) if i == int(name) else item for i, item in enumerate(old)]
    if not isinstance(old, dict) and old is not None:
        raise TrainingError(f"--set {key}: expected keys or a list before {name}, got {old!r}")
    return {**(old or {}), name: _put((old or {}).get(name), rest, value, key)}
