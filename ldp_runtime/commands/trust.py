"""``ldp trust``: lets the engines of a bundle run on this machine."""

from __future__ import annotations

import argparse
import json
import sys

from ldp_runtime.commands.options import add_json_argument
from ldp_runtime.errors import BackendError, BundleError, counted

HELP = "Trusts the engines of a bundle, so that they may run here."
EXAMPLES = """\
examples:
  ldp trust my-bundle
  ldp trust my-bundle --yes

An engine is native code: run only those from people you trust. The command
shows each engine's hash, to compare with what its maker published, and asks.
Engines that were built on this machine are trusted already.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="model bundle: a name that `ldp info` lists, or a folder")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.bundle.trust import is_trusted, trust, trust_folder

    bundle = Bundle.load(arguments.bundle)
    if not bundle.manifest.engines:
        raise BundleError(
            f"expected engines in bundle {bundle.manifest.name!r}, got none; build some with ldp-export engine "
            f"{bundle.path}"
        )
    listed = [(entry, engine) for entry in bundle.manifest.engines for engine in entry.files]
    missing = {engine.file for _, engine in listed if not (bundle.path / engine.file).exists()}
    if missing.issuperset(engine.file for _, engine in listed):
        raise BundleError(
            f"expected the engine files of bundle {bundle.manifest.name!r} in {bundle.path}, got none; get them or "
            f"build some with ldp-export engine {bundle.path}"
        )
    new = {}
    for entry, engine in listed:
        if engine.file in missing:  # an engine in two parts needs both
            if not arguments.json:
                print(f"missing  {entry}\n         {engine.file}")
            continue
        bundle.read_engine(engine)  # the file is what the manifest says
        known = is_trusted(engine.sha256)
        if not known:
            new[engine.sha256] = engine.file
        if not arguments.json:
            print(
                f"{'trusted' if known else 'new':8} {entry}\n         {engine.file}\n         SHA-256 {engine.sha256}"
            )
    if new and not arguments.yes:
        _ask(len(new), arguments.json)
    trust(new, reason=f"ldp trust {bundle.manifest.name}")
    if arguments.json:
        fields = {"bundle": str(bundle.path), "trusted": new, "record": str(trust_folder())}
        print(json.dumps(fields, indent=2))
    else:
        print(
            f"trusted {counted(len(new), 'engine')}, recorded in {trust_folder()}"
            if new
            else "all of them were trusted"
        )


def _ask(count: int, json_wanted: bool) -> None:
    """Returns if the user agrees.

    Raises:
        BackendError: The user declined, or there is no terminal.
    """
    if json_wanted or not sys.stdin.isatty():
        raise BackendError("expected an answer, got no terminal to ask on; check the hashes and give --yes")
    answer = input(f"Run {counted(count, 'new engine')} as native code on this machine? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise BackendError("no engine was trusted; run the command again when you have checked where they come from")
