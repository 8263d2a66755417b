"""Builds TensorRT engines from a bundle's FP16 graphs. Imports no torch.

TensorRT-RTX compiles for GPUs that need not be there. The enterprise TensorRT times its kernels on the GPU that will
run them, so it needs that GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ldp_export.bundling.tensorrt_builder import Group, Part, Progress, TensorRT
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.engines import (
    ENGINE_PRECISION,
    EngineEntry,
    EngineFile,
    Profile,
    Shape,
    ShapeRange,
    clip_shapes,
    deblur_shapes,
    engine_key,
)
from ldp_runtime.bundle.fields import ENGINE_FOLDER
from ldp_runtime.bundle.manifest import BlurMapSpec, Manifest
from ldp_runtime.bundle.trust import is_trusted, trust
from ldp_runtime.errors import BundleError, LDPError, one_line
from ldp_runtime.files import locked_folder, write_whole
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH, Padding, WindowGrid, clip_batch

Size = tuple[int, int]

DEFAULT_OPT: Size = (1120, 1680)
"""Height and width in px that dynamic engines are tuned for: the pairs of the dual-pixel test set (Section 4.1)."""

DEFAULT_MAX: Size = (2240, 3360)
"""The largest size of dynamic engines where none is asked for; larger pairs are run in tiles."""


class EngineError(LDPError):
    """An engine cannot be built as asked."""


@dataclass(frozen=True)
class SizeRange:
    """Sizes of padded pairs that an engine takes, ``(H, W)`` in px, each side from ``min`` to ``max``."""

    min: Size
    opt: Size
    max: Size

    @classmethod
    def covering(cls, padding: Padding, min: Size | None, opt: Size | None, max: Size | None) -> SizeRange:
        """The padded sizes of pairs from ``min`` to ``max``; None takes the default.

        By default the smallest is the padding's multiple, the one that is tuned for ``DEFAULT_OPT`` and the largest
        ``DEFAULT_MAX``; the middle one gives way where it would lie outside the others.

        Args:
            padding: The size rule of the bundle.
            min: Size of the smallest pair.
            opt: Size of the pairs to tune for.
            max: Size of the largest pair.

        Raises:
            EngineError: A size is larger than the next.
        """
        low = padding.padded_size(*(min or (1, 1)))
        high = padding.padded_size(*(max or _larger(DEFAULT_MAX, opt or low)))
        middle = padding.padded_size(*(opt or _smaller(_larger(DEFAULT_OPT, low), high)))
        for names, small, large in (("min to opt", low, middle), ("opt to max", middle, high)):
            if small[0] > large[0] or small[1] > large[1]:
                got = f"{small[0]}x{small[1]} and {large[0]}x{large[1]}"
                raise EngineError(f"expected sizes that rise from {names} on both sides, got {got} (padded)")
        return cls(low, middle, high)

    @classmethod
    def fixed(cls, padding: Padding, size: Size) -> SizeRange:
        """The one padded size of pairs of ``size``."""
        padded = padding.padded_size(*size)
        return cls(padded, padded, padded)

    def __str__(self) -> str:
        low, middle, high = (f"{h}x{w}" for h, w in (self.min, self.opt, self.max))
        return low if low == high else f"{low} to {high}, tuned for {middle}"


def _larger(a: Size, b: Size) -> Size:
    return max(a[0], b[0]), max(a[1], b[1])


def _smaller(a: Size, b: Size) -> Size:
    return min(a[0], b[0]), min(a[1], b[1])


def profiles(manifest: Manifest, sizes: SizeRange) -> dict[str, Profile]:
    """The shapes of each graph's inputs for pairs of these sizes.

    The blur logits have one value per patch, so they are as tied to H and W as the pair. CLIP's batch is free up to
    ``ENGINE_CLIP_BATCH``, or exactly the one that a fixed size needs.

    Args:
        manifest: The bundle's manifest.
        sizes: Padded sizes.

    Returns:
        ``{"clip" | "deblur": profile}``; no "clip" where the network reads no blur map.
    """
    names, _ = manifest.graph_names("deblur")
    shapes = [deblur_shapes(*size, manifest.blur_cell) for size in (sizes.min, sizes.opt, sizes.max)]
    deblur = {name: shape for name, shape in _profile(shapes).items() if name in names}
    clip = manifest.clip
    if clip is None:
        return {"deblur": deblur}

    def batch(size: Size) -> int:
        grid = WindowGrid.cover(*size, window=clip.window, overlap=clip.overlap, patch=clip.patch)
        return clip_batch(len(grid))

    tuned = batch(sizes.opt)
    batches = (tuned, tuned, tuned) if sizes.min == sizes.max else (1, tuned, ENGINE_CLIP_BATCH)
    return {
        "clip": _profile([clip_shapes(count, clip.window, manifest.canvases) for count in batches]),
        "deblur": deblur,
    }


def _profile(shapes: Sequence[Mapping[str, Shape]]) -> Profile:
    return {name: ShapeRange(*(shape[name] for shape in shapes)) for name in shapes[0]}


def build_engines(
    bundle: Bundle,
    sizes: SizeRange,
    flavour: str = "rtx",
    architectures: Sequence[str] | None = None,
    *,
    whole: bool = False,
    progress: Callable[[str], contextlib.AbstractContextManager[Progress]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[EngineEntry]:
    """Builds the engines of the bundle's graphs into it, those that it has not got, and trusts what it built here.

    Each is written and listed in the manifest as soon as it is built. Engines of graphs that the bundle no longer has
    are taken off.

    Args:
        bundle: The bundle; its folder must be writable.
        sizes: Padded sizes that the engines shall take.
        flavour: A name of ``FLAVOURS``.
        architectures: As for ``TensorRT.targets``.
        whole: Leaves the deblur graph whole. Else TensorRT-RTX gets it in two parts where it can be cut, the first of
            which the runtime runs beside CLIP.
        progress: Makes a ``Progress`` from a build's name.
        report: Takes what was built and what was there, trusted or not, a line at a time, and TensorRT's warnings.

    Returns:
        The entries of the engines asked for, built or found.

    Raises:
        BackendError: TensorRT is missing or cannot build.
        BundleError: The bundle has no FP16 graphs or cannot be written.
        KeyboardInterrupt: Cancelled with Ctrl-C; nothing of the engine under way is left.
    """
    if bundle.manifest.blur_map != BlurMapSpec():
        raise EngineError(
            f"expected a bundle whose blur map comes from dense features and goes in as logits, got "
            f"{bundle.manifest.name!r}, which is of another kind that no engine runs; run its graphs with "
            "onnxruntime-cuda"
        )
    tensorrt = TensorRT(flavour)
    targets = tensorrt.targets(architectures)
    graphs = {kind: bundle.graph_hash(kind, ENGINE_PRECISION) for kind in bundle.manifest.graphs}
    _drop_stale(bundle, graphs)
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, profile in profiles(bundle.manifest, sizes).items():
            parts: list[Part] = []
            for group in targets:
                fields = kind, flavour, tensorrt.version, group, profile
                key = engine_key(graphs[kind], *fields, parts=2)
                entry = None if whole else _found(bundle, key)  # else the graph is cut to know whether it can be
                if entry is None:
                    parts = parts or graph_parts(bundle, kind, profile, Path(folder), flavour, whole=whole)
                    key = engine_key(graphs[kind], *fields, len(parts))
                    entry = _found(bundle, key)
                if entry is not None:
                    trusted = all(is_trusted(file.sha256) for file in entry.files)
                    hint = "" if trusted else f"; not built here, to run it: ldp trust {bundle.path}"
                    report(f"there already: {entry}{hint}")
                else:
                    contents = _compile(tensorrt, parts, group, progress or _no_progress, report)
                    files = {
                        f"{ENGINE_FOLDER}/{n}-{ENGINE_PRECISION}-{flavour}-{key[:16]}.engine": contents[n]
                        for n in contents
                    }
                    *heads, last = (EngineFile(f, hashlib.sha256(c).hexdigest(), len(c)) for f, c in files.items())
                    entry = EngineEntry(
                        *fields, key, last.file, last.sha256, last.size, head=heads[0] if heads else None
                    )
                    trust((file.sha256 for file in entry.files), reason="built here")
                    _write(bundle, entry, files)
                    report(f"built {entry} ({entry.total_size / 2**20:.1f} MiB)")
                entries.append(entry)
    return entries


def graph_parts(
    bundle: Bundle, kind: str, profile: Profile, folder: Path, flavour: str = "rtx", *, whole: bool = False
) -> list[Part]:
    """What engines are built of a graph of a bundle, in the order in which they run.

    Args:
        bundle: The bundle.
        kind: ``"clip"`` or ``"deblur"``.
        profile: The shapes of each input.
        folder: Where parts go; they must live until they are built.
        flavour: A name of ``FLAVOURS``; for ``"tensorrt"``, whose engines other servers run too, graphs stay whole.
        whole: Leaves the deblur graph whole for TensorRT-RTX too.

    Raises:
        EngineError: The package that cuts is not installed.
    """
    graph = Part(kind, bundle.graph(kind, ENGINE_PRECISION), profile)
    if kind != "deblur" or flavour != "rtx" or whole:
        return [graph]
    try:
        from ldp_export.bundling.cut import cut_parts
    except ImportError as error:
        raise EngineError(
            f"cutting the deblur graph in two needs the package onnx, which cannot be imported ({one_line(error)}); "
            "pip install 'ldp[rtx]', or build with --whole"
        ) from error
    return cut_parts(graph, bundle.manifest.padding.multiple, folder) or [graph]


def _compile(
    tensorrt: TensorRT,
    parts: Iterable[Part],
    group: Group,
    progress: Callable[[str], contextlib.AbstractContextManager[Progress]],
    report: Callable[[str], None],
) -> dict[str, bytes]:
    """The engines of parts by their names, in order."""
    contents = {}
    for part in parts:
        with progress(f"{part.name} for {', '.join(group)}") as listener:
            plan = tensorrt.build(part.graph, part.profile, group, channels_last=part.channels_last, progress=listener)
        for warning in dict.fromkeys(plan.warnings):
            report(f"{tensorrt.name} warns: {one_line(Exception(warning))}")
        contents[part.name] = plan.content
    return contents


@contextlib.contextmanager
def _no_progress(title: str) -> Iterator[Progress]:
    yield Progress()


def _found(bundle: Bundle, key: str) -> EngineEntry | None:
    """The bundle's engine of a key, if its files are what the manifest says."""
    for entry in read_manifest(bundle.path).engines:
        if entry.key == key:
            with contextlib.suppress(BundleError):
                for file in entry.files:
                    bundle.read_engine(file)
                return entry
    return None


def _write(bundle: Bundle, entry: EngineEntry, contents: Mapping[str, bytes]) -> None:
    """Writes an engine's files and lists it in the manifest, each in one step."""
    with _writing(bundle):
        (bundle.path / ENGINE_FOLDER).mkdir(exist_ok=True)
        write_whole({bundle.path / file: content for file, content in contents.items()})
        _set_engines(bundle, lambda engines: [*(e for e in engines if e.key != entry.key), entry])


def _drop_stale(bundle: Bundle, graphs: Mapping[str, str]) -> None:
    """Takes engines of other graphs off the manifest, and engine files that it does not list off the folder.

    Args:
        bundle: The bundle.
        graphs: ``Bundle.graph_hash`` of each graph.
    """

    def fresh(entry: EngineEntry) -> bool:
        return entry.kind in graphs and entry.made_from(graphs[entry.kind])

    with _writing(bundle):
        before = read_manifest(bundle.path).engines
        if not all(map(fresh, before)):
            _set_engines(bundle, lambda engines: list(filter(fresh, engines)))
        listed = {bundle.path / file.file for entry in read_manifest(bundle.path).engines for file in entry.files}
        for path in (bundle.path / ENGINE_FOLDER).glob("*.engine"):
            if path not in listed:
                path.unlink()


def _set_engines(bundle: Bundle, change: Callable[[Iterable[EngineEntry]], list[EngineEntry]]) -> None:
    """Changes the manifest's engines; the rest stays as it is in the file now."""
    manifest = read_manifest(bundle.path)
    engines = sorted(change(manifest.engines), key=lambda e: (e.kind, e.flavour, e.version, e.key))
    save_manifest(bundle.path, msgspec.structs.replace(manifest, engines=tuple(engines)))


@contextlib.contextmanager
def _writing(bundle: Bundle) -> Iterator[None]:
    """One build at a time: what another has written is in the manifest, and what it lists lies in the folder."""
    folder = bundle.path / ENGINE_FOLDER
    if folder.is_symlink():
        raise BundleError(f"{folder}: expected a folder of the bundle, got a link to elsewhere; remove it")
    try:
        with locked_folder(bundle.path):
            yield
    except OSError as error:
        raise BundleError(
            f"{bundle.path}: the engines cannot be written there ({error.strerror or error}); free some space, or copy "
            "the bundle to a folder of yours and build in the copy"
        ) from error
