"""Folders of small pairs, and ``ldp batch`` over them, in this process or in one of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

from ldp_runtime.batch.journal import JOURNAL_FILE
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import write_photo
from tests.ldp_runtime.conftest import BACKEND, H, W, scene


def make_pairs(folder: Path, count: int, *, height: int = H, width: int = W) -> Path:
    """Writes pairs ``00/pair_L.png``, ``00/pair_R.png`` and so on, all different."""
    for i in range(count):
        for view, shift in (("L", 1), ("R", -1)):
            path = folder / f"{i:02}" / f"pair_{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_photo(path, Photo(scene(shift=shift, height=height, width=width, seed=i)))
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file below an output folder save for the journal and the log: path -> content."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in (JOURNAL_FILE, "ldp-batch.json")}


def command(source: Path, output: Path, bundle: Path, *options: object) -> list[str]:
    """The arguments of ``ldp`` for a batch with the tiny bundle."""
    return ["batch", *map(str, (source, output, "--bundle", bundle, *BACKEND, *options))]


def start(arguments: list[str], *, path: Path | None = None) -> subprocess.Popen[str]:
    """Starts ``ldp`` in a process and a session of its own; ``path`` comes first on the path of modules."""
    folders = [folder for folder in (path, Path(__file__).resolve().parents[3]) if folder is not None]
    return subprocess.Popen(
        [sys.executable, "-m", "ldp_runtime", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        start_new_session=True,
    )


HELD = """
import time
from pathlib import Path
from ldp_runtime.batch import work

def read(job, settings, real=work.read):
    while job.name.startswith({name!r}) and not Path({go!r}).exists():
        time.sleep(0.01)
    return real(job, settings)

work.read = read
"""


def hold(folder: Path, name: str) -> Path:
    """Processes that ``start`` has with this path do not read the pair ``name`` until the file returned here exists."""
    go = folder / "go"
    (folder / "sitecustomize.py").write_text(HELD.format(name=f"{name}/", go=str(go)))
    return go


def wait_for(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Waits until a run has finished so many pairs, or ended."""
    journal = output / JOURNAL_FILE
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b'{"done"') >= count):
        time.sleep(0.005)
