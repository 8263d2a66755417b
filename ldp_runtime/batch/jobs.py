"""The jobs of a run, one per pair, and the settings that all share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ldp_runtime.batch.pairs import Pair, PairingError
from ldp_runtime.images import raw_container

FORMATS = {"png": ".png", "tiff": ".tif", "jpg": ".jpg"}
"""Format of the restored images -> suffix."""

MAP_FORMATS = {"png": "_blur.png", "npy": "_blur.npy"}
"""Format of the blur maps -> the end of their names."""


@dataclass(frozen=True)
class Settings:
    """The settings of all pairs; those not listed as for ``Deblurrer.from_bundle``.

    Attributes:
        bundle: The bundle's folder.
        axis: How the sensor splits its pixels.
        swap: The names of the views are exchanged.
        content: ``Bundle.content`` of the bundle; every worker needs the same.
        side_by_side: Each picture holds both views.
    """

    bundle: str
    backend: str
    precision: str
    threads: int | None
    tile: int | str
    axis: str
    swap: bool
    content: str
    side_by_side: bool = False
    check: str = "auto"
    scale: str = "auto"

    def key(self) -> str:
        """SHA-256 of the settings that change a restored image."""
        fields = asdict(self)
        for name in ("bundle", "threads"):  # neither changes the image
            del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """A pair to restore.

    Attributes:
        left: File of the left view, absolute, or of both.
        right: File of the right view, absolute; None if ``left`` holds both.
        output: The restored image to write, absolute.
        blur_map: The blur map to write, absolute, or None.
        name: ``output`` below the output folder, with slashes.
        target: The sharp photo to compare with, absolute, or None.
    """

    left: Path
    right: Path | None
    output: Path
    blur_map: Path | None
    name: str
    target: Path | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that the job reads."""
        return tuple(path for path in (self.left, self.right, self.target) if path is not None)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file of the job."""
        return (self.output,) if self.blur_map is None else (self.output, self.blur_map)


def make_jobs(
    pairs: Iterable[Pair],
    folder: Path,
    *,
    image_format: str | None,
    map_format: str | None,
    targets: Mapping[PurePosixPath, Path] | None = None,
) -> list[Job]:
    """Names the outputs of pairs.

    Args:
        pairs: The pairs.
        folder: The output folder.
        image_format: A name of ``FORMATS``; None for the left view's, TIFF for raw files.
        map_format: A name of ``MAP_FORMATS``; None for no blur maps.
        targets: ``Pair.name`` -> its target.

    Raises:
        PairingError: Two outputs have one name, or one is an input.
    """
    folder = Path(os.path.abspath(folder))
    jobs = []
    for pair in pairs:
        own = ".tif" if pair.left.suffix.lower() in raw_container.SUFFIXES else pair.left.suffix
        suffix = pair.suffix or (own if image_format is None else FORMATS[image_format])
        stem = str(pair.name)
        blur_map = None if map_format is None else folder / f"{stem}{MAP_FORMATS[map_format]}"
        name = stem + suffix
        files = (pair.left, pair.right, (targets or {}).get(pair.name))
        left, right, target = (None if path is None else Path(os.path.abspath(path)) for path in files)
        assert left is not None
        jobs.append(Job(left, right, folder / name, blur_map, name, target))
    inputs = {os.path.realpath(path) for job in jobs for path in job.inputs}
    makers: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs:
            real = os.path.realpath(output)
            if real in inputs:
                raise PairingError(f"{output} is an input, which would be lost; choose another output folder")
            if real in makers:
                other = makers[real]
                raise PairingError(
                    f"expected one output per pair, got {output} for {job.left} and for {other.left}; rename one, or "
                    "give names in a CSV with the column output"
                )
            makers[real] = job
    return jobs
