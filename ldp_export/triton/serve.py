"""Starts the Triton server of the package nvidia-pytriton on the repository that this script lies in.

python serve.py --http-port=8000 --grpc-port=8001 --metrics-port=8002

Arguments go to tritonserver. Run it with the Python that has the package ldp: the models run in that Python.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_STUB = "triton_python_backend_stub"


def find_server() -> Path:
    """The folder of the server in the package.

    Raises:
        SystemExit: There is none for this Python.
    """
    spec = importlib.util.find_spec("pytriton")  # not imported: its Python code wants NumPy 1
    if spec is None or spec.origin is None:
        raise SystemExit(f"{sys.executable} lacks the package; pip install --no-deps nvidia-pytriton")
    folder = Path(spec.origin).resolve().parent / "tritonserver"
    if not _stub(folder).is_file():
        have = ", ".join(sorted(path.name for path in (folder / "python_backend_stubs").glob("*")))
        raise SystemExit(f"expected a Python that nvidia-pytriton serves, one of {have}, got {_version()}")
    return folder


def start(folder: Path, repository: Path, backends: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Starts the server.

    Args:
        folder: That of ``find_server``.
        repository: The model repository.
        backends: An empty folder for the time that the server runs.
        arguments: Further arguments of tritonserver.
    """
    python = backends / "python"
    python.mkdir()
    for path in [*(folder / "backends" / "python").iterdir(), _stub(folder)]:
        (python / path.name).symlink_to(path)
    libraries = [str(folder.parent.parent / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    search = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]  # the backend takes the first python3 there
    return subprocess.Popen(
        [
            folder / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *arguments,
        ],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join(filter(None, search)),
        },
    )


def _stub(folder: Path) -> Path:
    return folder / "python_backend_stubs" / _version() / _STUB


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> int:
    """Runs the server until it ends."""
    folder = find_server()
    with tempfile.TemporaryDirectory(prefix="ldp-triton-") as backends:
        server = start(folder, Path(__file__).resolve().parent, Path(backends), sys.argv[1:])
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the server by itself
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
