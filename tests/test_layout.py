"""The layout of the packages, read from their source: direction of imports, size of modules, place of tests."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "ldp_runtime": ("ldp_runtime",),
    "ldp_export": ("ldp_export", "ldp_runtime"),
    "benchmarks": ("benchmarks", "ldp_export", "ldp_runtime"),
}
"""Package -> the packages of this repository that it may import."""
NO_TORCH = ("ldp_runtime",)
MOST_LINES = 400
MEDIAN_LINES = 150

NO_MODULE = ("tests/ldp_runtime/test_no_torch.py",)
"""Test files that are named after no module or folder: they test a promise of all of them."""

Graph = Mapping[str, set[str]]


def find_faults(root: Path) -> set[str]:
    """All faults of the layout below ``root``, a line each."""
    sources = {name: path for package in MAY_IMPORT for name, path in _modules(root, package)}
    imports = {name: set(_imports(path, name, sources)) for name, path in sources.items()}
    inner: dict[str, set[str]] = {
        name: {other for other in found if other in sources} for name, found in imports.items()
    }
    wings: dict[str, set[str]] = {}
    for name, found in inner.items():
        wings.setdefault(_wing(name), set()).update(map(_wing, found))
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in sources.items()}
    return {
        *(f"circle of modules: {circle}" for circle in _circles(inner)),
        *(f"circle of wings: {circle}" for circle in _circles(wings)),
        *_upward(imports),
        *(f"{name} has more than {MOST_LINES} lines" for name, count in lines.items() if count > MOST_LINES),
        *(
            f"the median of {package} is not under {MEDIAN_LINES} lines"
            for package in MAY_IMPORT
            if median([count for name, count in lines.items() if _package(name) == package] or [0]) >= MEDIAN_LINES
        ),
        *_unmirrored(root),
    }


def _modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in (root / package).rglob("*.py"):
        yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def _imports(path: Path, name: str, sources: Iterable[str]) -> Iterator[str]:
    """What a module imports anywhere, also in functions, for types alone and by name: our modules, others' packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [each if each in sources else node.module for each in found]
        elif isinstance(node, ast.Constant) and node.value in sources and "." in node.value:  # for importlib
            found = [node.value]
        else:
            continue
        yield from (each for each in found if each != name)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _wing(name: str) -> str:
    """The first-level folder or module of a package."""
    return ".".join(name.split(".")[:2])


def _circles(graph: Graph) -> set[str]:
    """The strongly connected parts of a graph that have more than one node."""

    def reach(start: str) -> frozenset[str]:
        seen, todo = set(), [start]
        while todo:
            todo += (new := graph.get(todo.pop(), set()) - seen)
            seen |= new
        return frozenset(seen)

    reached = {name: reach(name) for name in graph}
    circles = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph}
    return {", ".join(circle) for circle in circles if len(circle) > 1}


def _upward(imports: Graph) -> Iterator[str]:
    for name, found in imports.items():
        package = _package(name)
        forbidden = {*MAY_IMPORT} - {*MAY_IMPORT[package]} | ({"torch"} if package in NO_TORCH else set())
        yield from (f"{name} imports {other}" for other in found if _package(other) in forbidden)


def _unmirrored(root: Path) -> Iterator[str]:
    for package in MAY_IMPORT:
        for path in (root / "tests" / package).rglob("test_*.py"):
            name = path.relative_to(root).as_posix()
            module = root / path.relative_to(root / "tests").with_name(path.name.removeprefix("test_"))
            if not (module.is_file() or module.with_suffix("").is_dir() or name in NO_MODULE):
                yield f"{name} mirrors nothing"


def test_no_faults():
    assert sorted(find_faults(ROOT)) == []


SOUND = {
    "ldp_runtime/__init__.py": "",
    "ldp_export/__init__.py": "",
    "ldp_runtime/errors.py": "",
    "ldp_runtime/images/png.py": "import numpy\nfrom ldp_runtime import errors",
    "ldp_export/train.py": "import torch\nfrom ldp_runtime.images.png import read",
    "benchmarks/latency.py": "import ldp_export.train",
    "tests/ldp_runtime/images/test_png.py": "",
    "tests/ldp_runtime/test_images.py": "",
}
LAZY = "def f():\n    import {}"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {} import {}"
FAULTY = {
    "circle of modules: ldp_runtime.images.exif, ldp_runtime.images.tiff": {
        "ldp_runtime/images/tiff.py": LAZY.format("ldp_runtime.images.exif"),
        "ldp_runtime/images/exif.py": FOR_TYPES.format("ldp_runtime.images", "tiff"),
    },
    "circle of wings: ldp_runtime.batch, ldp_runtime.images": {
        "ldp_runtime/batch/run.py": LAZY.format("ldp_runtime.images.png"),
        "ldp_runtime/images/tiff.py": FOR_TYPES.format("ldp_runtime.batch.jobs", "Job"),
        "ldp_runtime/batch/jobs.py": "",
    },
    "ldp_runtime.cli imports torch.nn": {"ldp_runtime/cli.py": LAZY.format("torch.nn")},
    "ldp_runtime.cli imports ldp_export.train": {"ldp_runtime/cli.py": FOR_TYPES.format("ldp_export", "train")},
    "ldp_runtime.cli imports benchmarks.latency": {"ldp_runtime/cli.py": "import_module('benchmarks.latency')"},
    "ldp_export.cli imports benchmarks": {"ldp_export/cli.py": LAZY.format("benchmarks")},
    "ldp_export.cli has more than 400 lines": {"ldp_export/cli.py": "\n" * 401},
    "the median of ldp_export is not under 150 lines": {f"ldp_export/{x}.py": "\n" * 150 for x in ("train", "cli")},
    "tests/ldp_export/test_cli.py mirrors nothing": {"tests/ldp_export/test_cli.py": ""},
}
"""Fault -> what a sound tree gets to have it and no other."""


@pytest.mark.parametrize("fault", [None, *FAULTY])
def test_finds(fault: str | None, tmp_path: Path):
    for name, text in (SOUND | FAULTY.get(fault, {})).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert find_faults(tmp_path) == ({fault} - {None})
