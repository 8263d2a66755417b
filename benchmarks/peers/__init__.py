"""Alternatives to LDP on the same pair, to compare time and memory.

The weights are random: nothing here restores an image, and time does not depend on the weights. Accuracy is quoted from
papers, and labelled so.
"""

from __future__ import annotations

from ldp_export.network.published import PUBLISHED

PEERS = PUBLISHED
"""Every peer by name."""
