"""State dicts in files of torch: bounded, unwrapped, compared with what a network needs.

Files are read with ``weights_only=True``, which runs no code of theirs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldp_runtime.bundle.bundle import sha256_file
from ldp_runtime.errors import LDPError, listed
from ldp_runtime.files import cannot_read

MAX_FILE_BYTES = 2 << 30
"""Largest file of weights, packed and unpacked; the largest that is known, DPDNet's with its optimiser, has 0.4 GB."""

WRAPPERS = ("params", "state_dict", "model")
"""Keys that a state dict may lie under."""

PREFIXES = ("module.", "Network.")
"""Beginnings of names that training leaves behind: of torch's wrapper for many GPUs, of IFAN's trainer."""

State = dict[str, Tensor]

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class WeightsError(LDPError):
    """A file is not the checkpoint that it should be."""


def file_hash(path: Path, fix: str) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        path: The file.
        fix: What the user should give, the end of an error.

    Raises:
        WeightsError: It is missing, cannot be read, or has more than ``MAX_FILE_BYTES``.
    """
    try:
        if not path.is_file():
            raise WeightsError(f"expected a file of weights, got {path}, which is none; {fix}")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise WeightsError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {size}; {fix}")
        return sha256_file(path)
    except OSError as error:
        raise WeightsError(cannot_read(path, error)) from error


def read_torch(path: Path, fix: str) -> State:
    """Reads the state dict of a file of ``torch.save``, without its wrapper and prefixes.

    Args:
        path: The file, of which ``file_hash`` has checked the size.
        fix: As for ``file_hash``.

    Raises:
        WeightsError: It cannot be read, holds more than weights, or no state dict.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (size := sum(entry.file_size for entry in archive.infolist())) > MAX_FILE_BYTES:
                    raise WeightsError(f"{path}: expected at most {MAX_FILE_BYTES} bytes unpacked, got {size}; {fix}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch raises what it likes, from zip and pickle errors to its own
        raise WeightsError(f"{path}: expected a checkpoint of weights alone, got {_reason(error)}; {fix}") from error
    return _stripped(path, _unwrapped(path, content, fix), fix)


def check_state(
    path: str, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], title: str, fix: str
) -> None:
    """Compares names, shapes and types with those that a network needs.

    Args:
        path: Names the file or files in errors.
        state: What was read.
        expected: Names and shapes.
        title: Names the network in errors.
        fix: As for ``file_hash``.

    Raises:
        WeightsError: They differ; the message lists all that is missing, unknown, of another shape or not finite.
    """
    problems = []
    for what, names in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {what}: {listed(sorted(names))}")
    shared = sorted(state.keys() & expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {expected[name]}"
        for name in shared
        if tuple(state[name].shape) != expected[name]
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {listed(shapes)}")
    fitting = [name for name in shared if tuple(state[name].shape) == expected[name]]  # another may be of any size
    # Batch normalisation counts its batches.
    numbers = {n for n in fitting if state[n].is_floating_point() or n.endswith(".num_batches_tracked")}
    unfit = [n for n in fitting if n not in numbers or not state[n].float().isfinite().all()]  # FP32 from here on
    if unfit:
        problems.append(f"{len(unfit)} not of finite numbers: {listed(unfit)}")
    if problems:
        raise WeightsError(f"{path}: expected the weights of {title}, got {'; '.join(problems)}; {fix}")


def _unwrapped(path: Path, content: Any, fix: str) -> Mapping[Any, Any]:
    if isinstance(content, dict):
        for candidate in (content, *(content.get(name) for name in WRAPPERS)):
            if isinstance(candidate, dict) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
                return candidate
    got = listed(sorted(map(str, content))) if isinstance(content, dict) else type(content).__name__
    raise WeightsError(
        f"{path}: expected tensors by name, alone or under one of {', '.join(WRAPPERS)}, got {got or 'nothing'}; {fix}"
    )


def _stripped(path: Path, state: Mapping[Any, Tensor], fix: str) -> State:
    found: State = {}
    for name in state:
        short = str(name)
        for prefix in PREFIXES:
            short = short.removeprefix(prefix)
        if short in found:
            raise WeightsError(f"{path}: expected one tensor of each name, got {short} twice; {fix}")
        tensor = state[name]
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested or tensor.is_quantized:
            raise WeightsError(
                f"{path}: expected plain tensors, got {short} as a sparse, nested, quantised or empty one; {fix}"
            )
        found[short] = tensor
    return found


def _reason(error: Exception) -> str:
    """Why torch refuses a file, in plain words: its own text has several lines, advice and escape codes."""
    text = str(error)
    kinds = sorted(set(_GLOBAL.findall(text)))
    if kinds:
        return f"one that also holds {listed(kinds)}, which unpickling would have to run"
    lines = [line for line in _ESCAPE.sub("", text).splitlines() if line.strip()]
    sentence = [line.partition(". ")[0].removesuffix(".") for line in lines[:1]]  # torch advises unsafe loading next
    return f"a file that torch cannot read ({': '.join([type(error).__name__, *sentence])})"
