"""``ldp-export data``: checks data sets, and renders scenes to train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_runtime.command import CheckFailedError
from ldp_runtime.commands.options import parse_seed
from ldp_runtime.errors import counted

HELP = "Checks the layout of a data set, or renders training scenes."
EXAMPLES = """\
examples:
  ldp-export data check dpd-blur dd_dp_dataset_canon
  ldp-export data check rdpd dd_dp_dataset_synth_vid --split test
  ldp-export data render photos -o runs/scenes --scenes 3840 --jobs 2
  ldp-export data render photos -o runs/scenes --separation 0.42

`data check NAME DIR` says what was found, what is missing and the fix; the
exit code is 1 if something is missing. Nothing is downloaded: it also says
where each data set comes from and how its folder should look. `data render`
cuts random layered scenes from the photographs in a folder.
"""

_DEFAULT_SCENES = 3840


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")

    check = actions.add_parser("check", help="compare a folder with the layout of a data set", description=_CHECK)
    check.add_argument("name", metavar="NAME", help="simulated, pairs, dpd-blur, ddd-syn, rdpd, dpd-disp or pixel-dp")
    check.add_argument("folder", metavar="DIR", type=Path, help="where it is")
    check.add_argument("--split", metavar="SPLIT", help="train, val or test (default: all that the data set has)")
    check.set_defaults(data_command=_check)

    render = actions.add_parser("render", help="render scenes from photographs", description=_RENDER)
    render.add_argument("photos", metavar="PHOTOS", type=Path, help="folder with photographs, at any depth")
    render.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder of the shards")
    render.add_argument(
        "--scenes", type=int, default=_DEFAULT_SCENES, metavar="N", help=f"how many (default: {_DEFAULT_SCENES})"
    )
    render.add_argument(
        "--list", type=Path, metavar="FILE", help="photographs to take, one per line (default: all of the folder)"
    )
    render.add_argument("--seed", type=parse_seed, metavar="N", help="of everything (default: that of ldp-nano)")
    render.add_argument(
        "--separation",
        type=float,
        metavar="S",
        help="distance of the centroids of the views over the radius, as ldp-export measure-psf prints it "
        "(default: drawn around 0.45)",
    )
    render.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    render.set_defaults(data_command=_render)


_CHECK = "Says what a folder holds of a data set, what is missing and how to fix it."
_RENDER = "Renders random layered scenes, 64 in a shard; shards that are there already stay."


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    arguments.data_command(arguments)


def _check(arguments: argparse.Namespace) -> None:
    from ldp_export.data import find_kind
    from ldp_export.data.layout import check_kind

    kind = find_kind(arguments.name)
    splits = list(kind.splits) if arguments.split is None else [arguments.split]
    scans = {split: check_kind(kind, arguments.folder, split) for split in splits}
    print(f"{kind.title}: {kind.origin}")
    incomplete = [split for split, scan in scans.items() if scan.problems or not scan.pairs]
    for split, scan in scans.items():
        print(f"  {split:6}{counted(scan.pairs, 'pair'):>12}{'' if split in incomplete else '  ok'}")
        for line in (*scan.problems, *scan.remarks):
            print(f"         {line}")
    if incomplete:
        print(f"expected layout:\n{kind.tree}")
        raise CheckFailedError(f"{kind.name} in {arguments.folder} is not complete: {', '.join(incomplete)}")


def _render(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ldp_export.simulation.scenes import SEED, RenderJob, read_photo_list, render

    names = None if arguments.list is None else read_photo_list(arguments.list)
    seed = SEED if arguments.seed is None else arguments.seed
    job = RenderJob(arguments.photos, names, arguments.output, seed, arguments.separation)
    with tqdm(total=arguments.scenes, unit=" scenes", disable=None) as bar:
        render(job, arguments.scenes, jobs=arguments.jobs, progress=bar.update)
    print(f"{arguments.output}: {counted(arguments.scenes, 'scene')}")
