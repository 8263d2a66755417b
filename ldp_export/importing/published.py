"""The authors' files of a published network, made ready for export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldp_export.importing.keras import read_keras
from ldp_export.importing.state import State, WeightsError, check_state, file_hash, read_torch
from ldp_export.model import ExportModel
from ldp_export.network.published import Published
from ldp_runtime.bundle.manifest import Origin, SourceFile

_HDF5 = b"\x89HDF\r\n\x1a\n"


def import_published(published: Published, paths: Sequence[Path]) -> ExportModel:
    """Reads the authors' files of a network.

    Args:
        published: A network whose authors publish weights.
        paths: The files, in the order of ``Weights.files``.

    Raises:
        WeightsError: A file cannot be read, holds more than weights, or its names and shapes are others.
    """
    weights = published.weights
    if weights is None or len(paths) != len(weights.files):
        wanted = "none" if weights is None else ", ".join(weights.files)
        raise WeightsError(f"expected the files of {published.title} ({wanted}), got {len(paths)}; give those")
    fix = f"give {' and '.join(weights.files)} from {weights.where}"
    prefixes = {name: f"{Path(name).stem.lower()}." if len(paths) > 1 else "" for name in weights.files}
    files, state = [], State()
    for path, name in zip(paths, weights.files, strict=True):
        files.append(SourceFile(path.name, file_hash(path, fix)))
        found = _read(path, fix)
        if (other := _file_of(found, published, prefixes)) not in (name, None):
            raise WeightsError(f"{path}: expected {name} here, got the tensors of {other}; {fix}, in this order")
        state |= {prefixes[name] + key: tensor for key, tensor in found.items()}
    network = published.network_class.fitting(state)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(network.ignored)}
    check_state(", ".join(map(str, paths)), state, network.published_state(), published.title, fix)
    network.load_published_state({key: tensor.float() for key, tensor in state.items()})
    return ExportModel(
        network=network.eval(),
        clip=None,
        prompts=(),
        windows=None,
        trained=True,
        training={"weights": f"published by the authors of {published.title}"},
        licences={"weights": weights.licence, "data": ["see the authors' paper"]},
        origin=Origin(published.name, tuple(files), weights.licence, weights.sharing, weights.cite),
    )


def _file_of(state: State, published: Published, prefixes: Mapping[str, str]) -> str | None:
    """Which of several files of a network a state is most like; None where there is one file, or it is like none."""
    if len(prefixes) == 1:
        return None
    known = published.build().published_state()
    shared = {name: sum(prefix + key in known for key in state) for name, prefix in prefixes.items()}
    best = max(shared, key=lambda name: shared[name])
    return best if shared[best] else None


def _read(path: Path, fix: str) -> State:
    with path.open("rb") as file:
        keras = file.read(len(_HDF5)) == _HDF5
    return read_keras(path, fix) if keras else read_torch(path, fix)
