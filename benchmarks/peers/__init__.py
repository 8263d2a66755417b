"""Alternatives to LDP on the same pair, to compare time and memory.

The weights are random: nothing here restores an image, and time does not depend on the weights. Accuracy is quoted from
papers, and labelled so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ldp_export.network.published import PUBLISHED, Published

PEERS: Mapping[str, Published] = MappingProxyType(
    {name: PUBLISHED[name] for name in ("nafnet", "restormer", "dpdnet", "ifan", "dddnet", "k3dn", "deeprft", "dmenet")}
)
"""Every peer by name."""
