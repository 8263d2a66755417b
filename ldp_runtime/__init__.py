"""LDP's runtime: a blurred dual-pixel pair in, an all-in-focus image and its blur map out. Imports no torch.

Example:
    >>> from ldp_runtime import Deblurrer
    >>> result = Deblurrer.from_bundle("ldp-nano")(left, right)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer

__version__ = "0.1.0"

__all__ = ["Deblurrer", "__version__"]


def __getattr__(name: str) -> object:
    """Imports ``Deblurrer`` on its first use, so that ``import ldp_runtime`` stays instant."""
    if name == "Deblurrer":
        from ldp_runtime.deblurrer import Deblurrer

        return Deblurrer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
