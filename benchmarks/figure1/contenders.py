"""What Figure 1 compares: the methods of the paper's tables, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.latency.verdict import PAPER_ROWS
from ldp_export.evaluation.paper import load_table
from ldp_export.network.published import PUBLISHED
from ldp_runtime.bundle.bundle import Bundle

ONE_PAIR_TABLE, ABLATION_TABLE = 1, 6

THIRD_PARTY = ("k3dn",)
"""Their published files are not the authors'."""


@dataclass(frozen=True)
class Quote:
    """Accuracy on DPD-blur as the LDP paper prints it, of its authors' trained weights.

    Attributes:
        psnr: In dB.
        ssim: From 0 to 1.
        source: Where it stands.
    """

    psnr: float
    ssim: float
    source: str


@dataclass(frozen=True)
class Contender:
    """A method to time.

    Attributes:
        name: Unique: a name of ``CONTENDERS``, or of a bundle.
        title: Its name in print.
        kind: "classical", "published", "config" (random weights of a network of ours) or "bundle".
        weights: Which trained weights there are, a phrase.
        licence: Of these weights, a phrase; None without.
        quoted: What the paper prints of it; None where it prints nothing.
        bundle: Folder of a bundle.
    """

    name: str
    title: str
    kind: str
    weights: str
    licence: str | None
    quoted: Quote | None
    bundle: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without what differs between machines."""
        values = asdict(self)
        return {"who": values.pop("name"), **{key: value for key, value in values.items() if key != "bundle"}}


def quote(row: str, table: int = ONE_PAIR_TABLE) -> Quote:
    """The accuracy of a row of Table 1, where it is the average of all scenes, or of Table 6."""
    prefix = "average_" if table == ONE_PAIR_TABLE else ""
    values = load_table(table).find(row).values
    return Quote(values[f"{prefix}psnr"], values[f"{prefix}ssim"], f"LDP paper, Table {table}, {row}")


def _contenders() -> list[Contender]:
    found = [Contender("ebdb", "EBDB, approximate", "classical", "needs none", None, quote("EBDB"))]
    for network in PUBLISHED.values():
        weights = "none"
        if network.weights is not None:
            weights = "a third party's" if network.name in THIRD_PARTY else "the authors'"
        row, table = network.quoted, ONE_PAIR_TABLE
        if row is None:
            row, table = network.quoted_ablation, ABLATION_TABLE
        title = "DMENet, with its deconvolution" if network.name == "dmenet" else network.title
        licence = None if network.weights is None else network.weights.licence
        quoted = None if row is None else quote(row, table)
        found.append(Contender(network.name, title, "published", weights, licence, quoted))
    for name in ("small", "large", "fast", "fast-large"):
        quoted = quote(PAPER_ROWS[name]) if name in PAPER_ROWS else None
        found.append(Contender(name, f"LDP {name}", "config", "none", None, quoted))
    return found


CONTENDERS: Mapping[str, Contender] = MappingProxyType({contender.name: contender for contender in _contenders()})
"""Every method by name, but for bundles."""


def bundle_contender(bundle: Bundle) -> Contender:
    """A bundle with trained or random weights; one that holds a method of ``CONTENDERS`` keeps its quotation."""
    manifest = bundle.manifest
    known = CONTENDERS.get(str(manifest.network.get("name")))
    trained = manifest.training.get("weights") != "random"
    weights = "none"
    licence: str | None = None
    if manifest.origin is not None:
        weights, licence = f"imported, {known.weights if known else manifest.origin.kind}", manifest.origin.licence
    elif trained:
        weights, licence = "ours", str(manifest.licences.get("weights"))
    folder = str(bundle.path.absolute())
    return Contender(manifest.name, manifest.name, "bundle", weights, licence, known.quoted if known else None, folder)


def choose(names: Sequence[str], bundles: Sequence[Bundle]) -> list[Contender]:
    """Bundles, then the methods of these names; a bundle stands for the method whose trained weights it holds."""
    held = {str(bundle.manifest.network.get("name")) for bundle in bundles}
    return [*map(bundle_contender, bundles), *(CONTENDERS[name] for name in names if name not in held)]
