"""Build hook: the trained bundle travels inside the wheel.

A static ``force-include`` would be applied to editable installs too. Those must work without the bundle, and
a copy of it in site-packages would go stale: there the runtime reads ``models/`` of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLE = "models/ldp-nano"


class BundleBuildHook(BuildHookInterface):
    """Adds ``models/ldp-nano`` to a wheel as ``ldp_runtime/models/ldp-nano``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Names the folder to hatchling; does nothing for an editable install.

        Args:
            version: ``"standard"`` or ``"editable"``.
            build_data: hatchling's mutable description of the build.

        Raises:
            FileNotFoundError: the bundle is not in the source tree.
        """
        if version == "editable":
            return
        if not (Path(self.root) / BUNDLE / "bundle.json").is_file():
            raise FileNotFoundError(
                f"a wheel needs {BUNDLE}/bundle.json, which is not there; "
                "restore it from git, or install with `pip install -e .`"
            )
        build_data["force_include"][BUNDLE] = f"ldp_runtime/{BUNDLE}"
