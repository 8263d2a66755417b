"""Commands that faults are provoked in, with what is wrong and what is missing in their output folders."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY_SUFFIXES = (".tmp", ".new")


@dataclass(frozen=True)
class Scenario:
    """A command, and the checks of its outputs.

    Attributes:
        name: For people.
        program: "ldp" or "ldp-export".
        arguments: The arguments, by the output folder.
        problems: The faults in the output folder; a partly written file is one, a missing file is not.
        complete: The faults after a run that succeeded, missing files among them.
        prepare: Writes the outputs of an earlier run.
    """

    name: str
    program: str
    arguments: Callable[[Path], list[str]]
    problems: Callable[[Path], list[str]]
    complete: Callable[[Path], list[str]]
    prepare: Callable[[Path], None] = field(default=lambda out: None)


def files_scenario(
    name: str, program: str, arguments: Callable[[Path], list[str]], reference: dict[str, bytes]
) -> Scenario:
    """A command that writes files, which are always the same.

    Args:
        name: For people.
        program: See ``Scenario``.
        arguments: See ``Scenario``.
        reference: Path in the output folder -> content of each file.
    """

    def wrong(out: Path, allowed: Callable[[bytes, bytes], bool]) -> list[str]:
        there = _contents(out)
        unknown = [f"{name} was not expected" for name in there.keys() - reference.keys()]
        return unknown + [f"{name} is not whole" for name, c in there.items() if not allowed(c, reference.get(name, c))]

    def prepare(out: Path) -> None:
        for file in reference:
            (out / file).parent.mkdir(exist_ok=True)
            (out / file).write_bytes(_OLD)

    return Scenario(
        name,
        program,
        arguments,
        problems=lambda out: wrong(out, lambda content, whole: content in (whole, _OLD)),
        complete=lambda out: [
            *wrong(out, lambda content, whole: content == whole),
            *(f"{name} is missing" for name in reference if not (out / name).is_file()),
        ],
        prepare=prepare,
    )


_OLD = b"old"


def _contents(out: Path) -> dict[str, bytes]:
    """The files of a folder by their path there, without temporary files and folders."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not any(is_temporary(part) for part in (path, *path.relative_to(out).parents))
    }


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of ours."""
    return path.name.startswith(".") and path.suffix in TEMPORARY_SUFFIXES


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noise_pair(folder: Path, height: int = 40, width: int = 56) -> tuple[Path, Path]:
    """Writes two views that hardly compress, so that their files are as large as they can be."""
    from ldp_runtime.images.photo import write_pixels

    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name, shift in (("left", 0), ("right", 1)):
        write_pixels(folder / f"{name}.png", np.roll(view, shift, axis=1))
    return folder / "left.png", folder / "right.png"


def runtime_scenarios(work: Path, bundle: Path) -> list[Scenario]:
    """``ldp deblur`` with all its outputs, and ``ldp blur-map``.

    Args:
        work: A folder for the views.
        bundle: A bundle's folder.
    """
    left, right = noise_pair(work)
    common = ["--bundle", str(bundle), "--backend", "onnxruntime", "--precision", "fp32", "--threads", "1", "-q"]

    def deblur(out: Path) -> list[str]:
        extra = ["--blur-map", str(out / "blur.npy"), "--compare", str(out / "compare.jpg")]
        return ["deblur", str(left), str(right), "-o", str(out / "sharp.png"), *extra, *common]

    def blur_map(out: Path) -> list[str]:
        return ["blur-map", str(left), str(right), "-o", str(out / "blur.tif"), *common]

    return [_reference(work, "ldp deblur", "ldp", deblur), _reference(work, "ldp blur-map", "ldp", blur_map)]


def data_scenarios(work: Path) -> list[Scenario]:
    """``ldp-export simulate`` and ``data render``; ``work`` is a folder for their inputs."""
    from ldp_runtime.images.photo import write_pixels

    rng = np.random.default_rng(1)
    photos = work / "photos"
    photos.mkdir()
    coarse = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    write_pixels(photos / "photo.png", np.kron(coarse, np.ones((8, 8, 1), np.uint8)))
    left, _ = noise_pair(work)
    np.save(work / "disparity.npy", np.tile(np.linspace(1, 9, 56, dtype=np.float32), (40, 1)))

    def simulate(out: Path) -> list[str]:
        return [
            "simulate",
            str(left),
            "-o",
            str(out / "pair"),
            "--disparity",
            str(work / "disparity.npy"),
            "--max-coc",
            "3",
        ]

    def render(out: Path) -> list[str]:
        return ["data", "render", str(photos), "-o", str(out / "scenes"), "--scenes", "2", "--seed", "1"]

    return [
        _reference(work, "ldp-export simulate", "ldp-export", simulate),
        _reference(work, "ldp-export data render", "ldp-export", render),
    ]


def _reference(work: Path, name: str, program: str, arguments: Callable[[Path], list[str]]) -> Scenario:
    """A scenario whose right outputs come from a run in this process."""
    import importlib

    out = work / f"{name.replace(' ', '-')}.reference"
    out.mkdir()
    package = "ldp_runtime" if program == "ldp" else "ldp_export"
    with contextlib.redirect_stdout(io.StringIO()):
        code = importlib.import_module(f"{package}.cli").main(arguments(out))
    assert code == 0, name
    return files_scenario(name, program, arguments, _contents(out))


def export_scenario(checkpoint: Path) -> Scenario:
    """``ldp-export onnx`` into a folder that may hold a bundle and notes already."""
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.bundle.manifest import MANIFEST_FILE
    from ldp_runtime.errors import LDPError

    notes = "my notes"

    def problems(out: Path) -> list[str]:
        folder = out / "bundle"
        found = []
        if (folder / MANIFEST_FILE).is_file():
            try:
                Bundle.load(folder)
            except LDPError as error:
                found.append(str(error))
        elif folder.exists() and not (out / ".bundle.new" / MANIFEST_FILE).is_file():
            parts = [path.name for path in folder.iterdir() if path.suffix != ".md"]
            found += [f"{part} of a bundle is there without the rest" for part in parts]
        if (out / "old").exists() and (folder / "README.md").read_text(encoding="utf-8") != notes:
            found.append("the notes are gone")
        return found

    def complete(out: Path) -> list[str]:
        return problems(out) + ([] if (out / "bundle" / MANIFEST_FILE).is_file() else ["there is no bundle"])

    def prepare(out: Path) -> None:
        from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

        make_tiny_bundle(out, "bundle")
        (out / "bundle" / "README.md").write_text(notes)
        (out / "old").touch()

    return Scenario(
        "ldp-export onnx",
        "ldp-export",
        lambda out: ["onnx", str(checkpoint), "-o", str(out / "bundle")],
        problems,
        complete,
        prepare,
    )


def training_scenario(work: Path, checkpoint: Path) -> Scenario:
    """``ldp-export train``: a few steps that save their state after each."""
    import yaml

    rng = np.random.default_rng(0)
    data = work / "scenes"
    data.mkdir()
    for shard in range(3):  # the first two are held out
        target = np.kron(rng.integers(0, 256, (3, 12, 12, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
        views = {"left": np.roll(target, -1, 2), "right": np.roll(target, 1, 2), "target": target}
        arrays: dict[str, Any] = {**views, **_maps()}
        np.savez(data / f"scenes-{shard:04d}.npz", **arrays)
    config = {
        "name": "tiny",
        "init": str(checkpoint),
        "data": [{"dataset": "simulated", "folder": str(data)}],
        "stages": [{"steps": 4, "lr": 1e-3}],
        "crop": 32,
        "batch": 2,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "workers": 0,
        "log_every": 1,
        "save_every": 1,
    }
    file = work / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    weights: list[str] = []

    def problems(out: Path) -> list[str]:
        from ldp_export.checkpoint import NETWORK_FILE, Checkpoint

        found = []
        folder = out / "run" / "checkpoint"
        if (folder / NETWORK_FILE).is_file():
            try:
                Checkpoint.open(folder).network()
            except Exception as error:
                found.append(f"the checkpoint does not load: {error}")
        state = out / "run" / "train.state.pt"
        if state.is_file():
            import torch

            try:
                torch.load(state, weights_only=True)
            except Exception as error:
                found.append(f"the state does not load: {error}")
        return found

    def complete(out: Path) -> list[str]:
        path = out / "run" / "checkpoint" / "deblur.safetensors"
        found = problems(out) + ([] if path.is_file() else ["there is no checkpoint"])
        if path.is_file():
            weights.append(digest(path))
            if weights[-1] != weights[0]:
                found.append("the weights are not those of a run that was never stopped")
        steps = [
            json.loads(line)["step"]
            for line in (out / "run" / "train.log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        if steps != [1, 2, 3, 4]:
            found.append(f"expected a line for each step in the log, got {steps}")
        return found

    return Scenario(
        "ldp-export train", "ldp-export", lambda out: ["train", str(file), "-o", str(out / "run")], problems, complete
    )


def _maps() -> dict[str, Any]:
    return {name: np.ones((3, 48, 48), np.float16) for name in ("coc", "disparity")}
