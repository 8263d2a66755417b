"""``ldp split``: the views of a dual-pixel raw photo as pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ldp_runtime.commands._pair import check_outputs
from ldp_runtime.commands.options import add_json_argument
from ldp_runtime.commands.progress import ProgressBar
from ldp_runtime.errors import ImageError, WriteError

HELP = "Splits a dual-pixel raw photo into its left, right and combined view."
EXAMPLES = """\
examples:
  ldp split PHOTO.CR3 -o views/
  ldp split PHOTO.DNG -o views/ --format png --swap

Writes views/PHOTO_L.tif, views/PHOTO_R.tif and views/PHOTO_combined.tif: 16
bits, sRGB, developed alike with the camera's white balance and one exposure,
upright, with the photo's EXIF data. `ldp batch views/ restored/` restores them.
FOLDER is made if it is missing; files of these names are replaced.

The combined view is the photo as other programs show it. One view is the raw
file's second frame, the other is the sum less that frame; both are clipped at
half of the sum's range. Which side the second frame is, the file does not say:
it is taken for the right one, and --swap exchanges them. DNGs with two samples
per pixel (Adobe DNG Converter) or two raw images were tried on synthetic files;
no camera's own CR2, CR3 or DNG was at hand. Needs: pip install 'ldp[raw]'

"""

_SUFFIXES = {"tiff": ".tif", "png": ".png"}
_ENDS = {"left": "_L", "right": "_R", "combined": "_combined"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("photo", metavar="PHOTO", help="dual-pixel raw photo: CR2, CR3 or DNG")
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True, help="folder to write to")
    parser.add_argument("--format", choices=tuple(_SUFFIXES), default="tiff", help="default: %(default)s")
    parser.add_argument("--swap", action="store_true", help="exchange the left and the right view")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.files import cannot_write, write_files
    from ldp_runtime.images.photo import encode_photo, read_bytes
    from ldp_runtime.images.raw import COMBINED, LEFT, RIGHT, develop
    from ldp_runtime.images.raw_container import is_raw

    photo, folder = Path(arguments.photo), arguments.output
    data = read_bytes(photo)
    if not is_raw(data):
        raise ImageError(f"{photo} is no CR2, CR3 or DNG file; expected the camera's raw file: pictures need no split")
    sides = (LEFT, RIGHT, COMBINED)
    names = {side: folder / f"{photo.stem}{end}{_SUFFIXES[arguments.format]}" for side, end in _ENDS.items()}
    if folder.exists():
        check_outputs([str(photo)], [str(path) for path in names.values()])
    # Encoded one by one: no more than one developed view is in memory.
    contents: dict[Path, bytes] = {}
    notes: dict[str, None] = {}
    width = height = 0
    order = (RIGHT, LEFT, COMBINED) if arguments.swap else sides
    with ProgressBar(quiet=arguments.quiet or arguments.json, name="splitting") as progress:
        for i, (side, view) in enumerate(zip(order, develop(photo, data, sides), strict=True)):
            progress((i + 0.5) / len(sides))
            contents[names[side]] = encode_photo(names[side], view)
            progress((i + 1) / len(sides))
            notes |= dict.fromkeys(view.notes)
            height, width = view.pixels.shape[:2]
            del view
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(cannot_write(folder, error)) from error
    write_files(contents)
    outputs = {side: str(path) for side, path in names.items()}
    if arguments.json:
        print(json.dumps({"width": width, "height": height, "notes": list(notes), "outputs": outputs}, indent=2))
    elif not arguments.quiet:
        lines = [f"photo    {width} x {height} px, 16 bits", *(f"note     {note}" for note in notes)]
        print("\n".join([*lines, *(f"wrote    {path}" for path in outputs.values())]))
