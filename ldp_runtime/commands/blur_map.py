"""``ldp blur-map``: shows where a pair is blurred."""

from __future__ import annotations

import argparse

from ldp_runtime.commands._pair import PairReport, add_pair_arguments, check_outputs, read_pair, view_files
from ldp_runtime.commands.options import require_blur_map, start_loading
from ldp_runtime.commands.progress import ProgressBar

HELP = "Shows where a pair is blurred."
EXAMPLES = """\
examples:
  ldp blur-map left.png right.png -o blur.png
  ldp blur-map left.png right.png -o blur.npy
  ldp blur-map PHOTO.CR3 -o blur.png

A picture shows the map in colour, dark where it is sharp and light where it is
blurred; .npy holds its numbers, an array (h, w) of float32 from 0 (sharp) to 1
(blurred). An existing OUT is replaced. A bundle whose network reads no blur map,
which `ldp info` shows, has none.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    add_pair_arguments(parser, restores=False)


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.files import write_files
    from ldp_runtime.images.pair_files import check_blur_map_name, encode_blur_map

    report = PairReport(arguments)
    check_blur_map_name(arguments.output)
    require_blur_map(arguments.bundle)
    check_outputs(view_files(arguments), [arguments.output])
    loading = start_loading(arguments, restores=False)
    with report.stage("read"):
        views = read_pair(arguments, report)
    with report.stage("load"):
        deblurrer = loading.result()
    with ProgressBar(quiet=arguments.quiet or arguments.json) as progress:
        result = deblurrer.blur_map(
            views.left.pixels, views.right.pixels, axis=views.axis, linear=views.linear, progress=progress
        )
    report.add_result(deblurrer, result)
    with report.stage("write"):
        write_files({arguments.output: encode_blur_map(arguments.output, result.blur_map)})
    report.fields["outputs"] = {"blur_map": arguments.output}
    report.print()
