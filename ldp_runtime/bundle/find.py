"""Where bundles are found by name."""

from __future__ import annotations

import os
from pathlib import Path

from ldp_runtime.bundle.manifest import MANIFEST_FILE
from ldp_runtime.errors import BundleError

ENV_BUNDLES = "LDP_BUNDLES"


def search_folders() -> list[Path]:
    """Where bundles are looked for by name, first wins.

    ``$LDP_BUNDLES``, ``./models``, the repository's ``models`` beside the package, ``models`` in the package.
    """
    package = Path(__file__).resolve().parent.parent
    folders = [Path(part) for part in os.environ.get(ENV_BUNDLES, "").split(os.pathsep) if part]
    folders.append(Path("models"))
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "models")
    folders.append(package / "models")
    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    return list(distinct.values())


def list_bundles() -> dict[str, Path]:
    """The bundles that can be found by name: folder name -> folder. Nothing is verified."""
    found: dict[str, Path] = {}
    for folder in search_folders():
        for manifest in sorted(folder.glob(f"*/{MANIFEST_FILE}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return found


def find_bundle(name_or_dir: str | os.PathLike[str]) -> Path:
    """Finds a bundle's folder.

    Args:
        name_or_dir: A folder with ``bundle.json``, or the name of one in ``search_folders``.

    Raises:
        BundleError: There is none; the message lists where it was looked for and which bundles exist.
    """
    direct = Path(name_or_dir)
    try:
        if (direct / MANIFEST_FILE).is_file():
            return direct
    except OSError as error:
        raise BundleError(f"{direct}: expected the folder of a bundle, got {error.strerror}; check the name") from error
    bundles = list_bundles()
    name = os.fspath(name_or_dir)
    if name in bundles:
        return bundles[name]
    looked = ", ".join(str(folder) for folder in search_folders())
    have = f"found there: {', '.join(bundles)}" if bundles else "found no bundle there"
    raise BundleError(
        f"expected a folder with {MANIFEST_FILE} or the name of a bundle, got {name!r}; looked in {looked}; "
        f"{have}; give one of these, or set {ENV_BUNDLES} to the folder that holds yours"
    )
