"""The real Triton server, started on loopback, of the package nvidia-pytriton.

That package and tritonclient want other releases of NumPy and protobuf than ours: ``make test-triton`` makes an
environment for them, or ``LDP_TRITON_PYTHON`` names its Python.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ldp_export.triton.repository import write_repository
from ldp_export.triton.serving import Serving
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import read_photo, write_photo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "samples" / "motorcycle"
LOAD = Path(__file__).with_name("triton_load.py")
SCHEMA = Path(__file__).with_name("triton_model_config.json")
START_SECONDS = 300

STAND_IN = '''\
"""Runs a graph in ONNX Runtime; stands in for the backend of that name, which nvidia-pytriton does not carry."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

from ldp_runtime.registry import BACKENDS


class TritonPythonModel:
    def initialize(self, args):
        (path,) = (Path(args["model_repository"]) / args["model_version"]).glob("*.onnx")
        self.session = BACKENDS["onnxruntime"].open(path, "fp32", 1)

    def execute(self, requests):
        answers = []
        for request in requests:
            outputs = self.session.run({tensor.name(): np.from_dlpack(tensor) for tensor in request.inputs()})
            tensors = [pb.Tensor.from_dlpack(name, outputs[name]) for name in request.requested_output_names()]
            answers.append(pb.InferenceResponse(output_tensors=tensors))
        return answers
'''


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of an environment with ldp, tritonclient and nvidia-pytriton."""
    named = os.environ.get("LDP_TRITON_PYTHON")
    made = ROOT / ".venv-triton" / "bin" / "python"
    path = Path(named) if named else made if made.exists() else Path(sys.executable)
    code = (
        "import importlib.util as u, sys\n"
        "names = ('ldp_runtime', 'tritonclient', 'pytriton')\n"
        "print(', '.join(name for name in names if u.find_spec(name) is None))"
    )
    done = subprocess.run([path, "-P", "-c", code], capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0 or done.stdout.strip():
        lacks = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
        pytest.skip(f"{path} lacks {lacks}; make test-triton makes an environment with them")
    return path


def environment() -> dict[str, str]:
    """Without PYTHONPATH: the server's Python does not see it either."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@dataclass
class Server:
    """A running server: its ports, and the file that it logs to."""

    http: int
    grpc: int
    log: Path

    def load(self, python: Path, bundle: Path, *arguments: str) -> dict[str, object]:
        """What ``triton_load.py`` prints."""
        ports = [f"--http=localhost:{self.http}", f"--grpc=localhost:{self.grpc}"]
        done = subprocess.run(
            [python, LOAD, bundle, *ports, "--threads=1", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        print(answer)
        return answer


@contextlib.contextmanager
def serve(python: Path, repository: Path, *arguments: str, ready: bool = True) -> Iterator[Server]:
    """Starts the server with the repository's own script, waits until it is ready, and stops it in the end."""
    log = repository.with_suffix(".log")
    server = Server(*free_ports(), log)
    command = [python, repository / "serve.py", "--allow-metrics=false", "--http-address=127.0.0.1"]
    command += ["--grpc-address=127.0.0.1", f"--http-port={server.http}", f"--grpc-port={server.grpc}", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment())
    try:
        wait_for(process, f"http://127.0.0.1:{server.http}/v2/health/{'ready' if ready else 'live'}", log)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    assert code == 0, log.read_text(encoding="utf-8")
    assert process.poll() is not None


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.2)


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def check(answer: dict[str, object], clients: int, requests: int) -> None:
    assert answer["wrong"] == []
    assert answer["requests"] == clients * requests
    refused = answer["refused"]
    assert isinstance(refused, list)
    assert len(refused) == clients
    assert all("expected two views of one size, got left" in message for message in refused)


def test_the_chain_under_load(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Eight clients, half of them by gRPC, with both depths, three sizes, both axes, and a wrong pair each."""
    repository = tmp_path / "repository"
    write_repository(bundle, repository, Serving(bits=(8, 16), instances=2, backend="onnxruntime", threads=1))
    with serve(python, repository) as server:
        check(server.load(python, bundle.path, "--requests=12", "--bits", "8", "16"), 8, 12)
    log = server.log.read_text(encoding="utf-8")
    assert "ldp: onnxruntime in fp32, as asked" in log
    assert "Traceback" not in log


def test_ldp_nano_by_the_example_client(python: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    bundle = Bundle.load()
    write_repository(bundle, repository, Serving(bits=(8, 16), backend="onnxruntime", threads=1))
    names = [tmp_path / f"{side}.png" for side in ("left", "right")]
    views = [read_photo(SAMPLE / name.name).pixels[100:260, 100:320] for name in names]
    deblurrer = Deblurrer(bundle, backend="onnxruntime", threads=1)
    with serve(python, repository) as server:
        for dtype, axis, url in (
            (np.uint8, "horizontal", [f"--url=localhost:{server.http}"]),
            (np.uint16, "vertical", ["--grpc", f"--url=localhost:{server.grpc}"]),
        ):
            pair = [view.astype(dtype) * (np.iinfo(dtype).max // 255) for view in views]
            for name, view in zip(names, pair, strict=True):
                write_photo(name, Photo(view))
            output, blur = tmp_path / f"sharp-{axis}.png", tmp_path / f"blur-{axis}.png"
            command = [python, repository / "client.py", *names, "-o", output, "--blur-map", blur, f"--axis={axis}"]
            subprocess.run([*command, *url], check=True, env=environment())
            expected = deblurrer(*pair, axis=axis)
            np.testing.assert_array_equal(read_photo(output).pixels, expected.restored)
            map_ = np.rint(255 * expected.blur_map).astype(np.uint8)
            np.testing.assert_array_equal(read_photo(blur).pixels[..., 0], map_)
        write_photo(names[1], Photo(views[1][:-1]))
        done = subprocess.run([*command, *url], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_graphs_as_models_of_the_server(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    """The model of the other variants asks ``ldp_clip`` and ``ldp_deblur``, which stand in for ONNX Runtime's here."""
    repository = tmp_path / "repository"
    write_repository(bundle, repository, Serving(variant="onnxruntime", bits=(8, 16), instances=2))
    for name in ("ldp_clip", "ldp_deblur"):
        config = repository / name / "config.pbtxt"
        text, count = re.subn(
            r'backend: "onnxruntime"\n.*\n', 'backend: "python"\n', config.read_text(encoding="utf-8")
        )
        assert count == 1
        config.write_text(text)
        (repository / name / "1" / "model.py").write_text(STAND_IN)
    with serve(python, repository) as server:
        check(server.load(python, bundle.path, "--requests=6", "--bits", "8", "16"), 8, 6)
    assert "ldp: triton in fp32, as asked" in server.log.read_text(encoding="utf-8")


def test_the_server_takes_the_config_of_the_other_backends(python: Path, bundle: Bundle, tmp_path: Path) -> None:
    """It reads them and then lacks nothing but the backend."""
    repository = tmp_path / "repository"
    write_repository(bundle, repository, Serving(variant="onnxruntime", openvino=True))
    with serve(python, repository, "--exit-on-error=false", ready=False) as server:
        request = urllib.request.Request(f"http://127.0.0.1:{server.http}/v2/repository/index", method="POST")
        with urllib.request.urlopen(request) as answer:
            index = {model["name"]: model for model in json.load(answer)}
    assert index["ldp"]["state"] == "READY"
    for name in ("ldp_clip", "ldp_deblur"):
        assert "unable to find backend library for backend 'onnxruntime'" in index[name]["reason"]


def test_the_schema_is_the_published_one(python: Path) -> None:
    code = (
        "import json\n"
        "from google.protobuf import descriptor_pb2, json_format\n"
        "from tritonclient.grpc import model_config_pb2\n"
        "file = descriptor_pb2.FileDescriptorProto()\n"
        "model_config_pb2.DESCRIPTOR.CopyToProto(file)\n"
        "print(json.dumps(json_format.MessageToDict(file)))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert json.loads(done.stdout) == json.loads(SCHEMA.read_text(encoding="utf-8"))["descriptor"]
