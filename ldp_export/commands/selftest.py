"""``ldp-export selftest``: writes the values that ``ldp selftest`` compares with into a bundle."""

from __future__ import annotations

import argparse

HELP = "Writes what `ldp selftest` compares with into a bundle."
EXAMPLES = """\
examples:
  ldp-export selftest models/ldp-nano

Restores a small made pair with the bundle's FP32 graphs and keeps both in
selftest.npz. `ldp-export onnx` and `import` do it by themselves; this
is for bundles that were exported before.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="model bundle: a name that `ldp info` lists, or a folder")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_export.bundling.selftest import add_sample
    from ldp_runtime.bundle.find import find_bundle
    from ldp_runtime.bundle.manifest import SELFTEST_FILE
    from ldp_runtime.files import locked_folder

    folder = find_bundle(arguments.bundle)
    with locked_folder(folder):
        entry = add_sample(folder).files[SELFTEST_FILE]
    print(f"{folder / SELFTEST_FILE}: {entry.size / 2**10:.0f} KiB, SHA-256 {entry.sha256}")
