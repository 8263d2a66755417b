"""Which files are the targets of pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ldp_runtime.batch.pairs import Pair, PairingError, list_images, target_places

Targets = dict[PurePosixPath, Path]
"""``Pair.name`` -> the target; pairs without one are left out."""


def match_targets(pairs: Sequence[Pair], folder: Path) -> Targets:
    """Finds the target of each pair: the picture in a folder with the pair's name, or with the last part of it.

    In the folders of DPD-blur targets have other names than their views, but the same order: where no name is found and
    there are as many pictures as pairs, the order decides.

    Raises:
        PairingError: The folder cannot be read, or holds the target of no pair.
    """
    if not folder.is_dir():
        raise PairingError(f"{folder} is not a folder; expected the folder of the targets, each with its pair's name")
    files = sorted(list_images(folder))
    paths: dict[PurePosixPath, Path] = {}
    names: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        paths.setdefault(file.with_suffix(""), folder / file)
        names[file.stem].append(folder / file)
    found = {}
    for pair in pairs:
        alike = names.get(pair.name.name, [])
        target = paths.get(pair.name) or (alike[0] if len(alike) == 1 else None)
        if target is not None:
            found[pair.name] = target
    if not found and len(files) == len(pairs):
        found = {pair.name: folder / file for pair, file in zip(pairs, files, strict=True)}
    if not found:
        raise PairingError(
            f"{folder} holds the target of no pair; expected pictures with the names of the pairs, such as "
            f"{pairs[0].name}.png"
        )
    return found


def companion_targets(pairs: Sequence[Pair], folder: Path) -> Targets:
    """Finds the targets that lie beside the views of an input folder, by the conventions of ``target_places``.

    Raises:
        PairingError: A folder of targets cannot be read, or holds the target of no pair that it lies beside.
    """
    files = {file.with_suffix(""): folder / file for file in list_images(folder)}
    found: Targets = {}
    shared: dict[PurePosixPath, list[Pair]] = defaultdict(list)
    for pair in pairs:
        places = target_places(PurePosixPath(pair.left.relative_to(folder).as_posix()))
        file = next((files[place] for place in places if place in files), None)
        if file is not None:
            found[pair.name] = file
            continue
        inner = next((place for place in places if (folder / place).is_dir()), None)
        if inner is not None:
            shared[inner].append(pair)
    for place, beside in shared.items():
        found |= match_targets(beside, folder / place)
    return found
