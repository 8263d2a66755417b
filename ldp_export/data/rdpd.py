"""RDPD (Abuolaim et al., ICCV 2021): DP video rendered from SYNTHIA-SF, five cameras times six drives, 8 bit.

The authors publish the code that writes ``dd_dp_dataset_synth_vid``. It writes drive 3 of every camera as "val" and as
"test", so those two splits are the same pictures; the others are "train".
"""

from __future__ import annotations

from pathlib import Path

from ldp_export.data.layout import DatasetKind, FilePairs, Listing, PairFiles, compare, list_images, missing_folders
from ldp_runtime.errors import counted

NAME = "rdpd"
SEQUENCES = {"train": 25, "val": 5, "test": 5}

_TITLE = "dd_dp_dataset_synth_vid"
_FIX = "run the authors' synthetic_dp_defocus_blur.py again"


def list_pairs(folder: Path, split: str) -> Listing:
    """Finds the frames of a split.

    Args:
        folder: ``dd_dp_dataset_synth_vid``.
        split: "train", "val" or "test".
    """
    wanted = (f"{split}_l/source", f"{split}_r/source", f"{split}_c/target")
    problems = missing_folders(folder, wanted, _TITLE)
    if problems:
        return Listing((), problems)
    frames = [
        {
            (path.parent.name, path.name): path
            for sequence in _sequences(folder / part)
            for path in list_images(sequence)
        }
        for part in wanted
    ]
    left, right, target = frames
    every = {f"{sequence}/{name}" for part in frames for sequence, name in part}
    problems = tuple(
        line
        for part, found in zip(wanted, frames, strict=True)
        for line in compare(part, every, {f"{sequence}/{name}" for sequence, name in found}, _FIX)
    )
    sequences = {sequence for sequence, _ in left}
    remarks: tuple[str, ...] = ()
    if len(sequences) != SEQUENCES[split]:
        remarks = (f"{counted(len(sequences), 'sequence')}, not the {SEQUENCES[split]} that the authors' code writes",)
    common = sorted(left.keys() & right.keys() & target.keys())
    files = (
        PairFiles(f"{sequence}-{Path(name).stem}", *(part[sequence, name] for part in frames))
        for sequence, name in common
    )
    return Listing(tuple(files), problems, remarks)


def _sequences(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("seq_*") if path.is_dir())


KIND = DatasetKind(
    name=NAME,
    title=f"RDPD ({_TITLE})",
    origin="written by the authors' code, Abdullah-Abuolaim/recurrent-defocus-deblurring-synth-dual-pixel",
    tree="""\
dd_dp_dataset_synth_vid/
  train_l/source/seq_001/000000.png    left views; likewise val_l and test_l
  train_r/source/seq_001/000000.png    right views
  train_c/target/seq_001/000000.png    targets""",
    splits=dict.fromkeys(SEQUENCES),
    scan=lambda folder, split: list_pairs(folder, split).scan(),
    open=lambda folder, split: FilePairs(NAME, split, list_pairs(folder, split).files),
)
