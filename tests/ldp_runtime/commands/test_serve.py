import signal
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.harness.serving import serving
from ldp_runtime.cli import main
from ldp_runtime.deblurrer import Deblurrer
from tests.ldp_runtime.conftest import BACKEND


def test_serve_restores_as_deblur_does_and_ends_with_0(bundle: Path, pair: tuple[str, str], tmp_path: Path) -> None:
    options = ["--bundle", str(bundle), *BACKEND]
    assert main(["deblur", *pair, "-o", str(tmp_path / "out.png"), "--quiet", *options]) == 0
    with serving(*options) as service:
        assert service.printed[0] == f"bundle   tiny ({bundle})"
        assert service.printed[-1] == f"serving  {service.url}/"
        assert service.address[0] == "127.0.0.1"
        files = {name: Path(path).read_bytes() for name, path in zip(("left", "right"), pair, strict=True)}
        answer = httpx2.post(f"{service.url}/v1/deblur", files=files, timeout=60)
        assert answer.status_code == 200
        assert answer.content == (tmp_path / "out.png").read_bytes()
        assert service.stop(signal.SIGTERM) == (0, "")


def test_every_worker_is_warmed_up_for_the_sizes_asked_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Deblurrer, "warm_up", lambda self, sizes: calls.append((self, sizes)))
    monkeypatch.setattr("ldp_runtime.service.server.serve", lambda *arguments, **options: signal.SIGTERM)
    options = ["--port", "0", "--workers", "2", "--bundle", str(bundle), *BACKEND]
    assert main(["serve", *options, "--warm-up", "40x50", "60x70"]) == 0
    assert [sizes for _, sizes in calls] == [[(40, 50), (60, 70)]] * 2
    assert calls[0][0] is not calls[1][0]


@pytest.mark.usefixtures("heeds_sigint")
def test_ctrl_c_ends_with_130_and_beyond_loopback_a_token_is_made(bundle: Path) -> None:
    with serving("--host", "0.0.0.0", "--bundle", bundle, "--backend", "onnxruntime") as service:
        token = next(line.split()[1] for line in service.printed if line.startswith("token"))
        assert service.printed[-1] == f"serving  {service.url}/#token={token}"
        url = f"http://127.0.0.1:{service.address[1]}/v1/limits"
        assert httpx2.get(url, timeout=60).status_code == 401
        answer = httpx2.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        assert answer.json()["max_pixels"] == 100_000_000
        assert service.stop(signal.SIGINT) == (130, "ldp: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token-file", "missing"], ["missing", "token"]),
        (["--host", "host.invalid"], ["host.invalid", "--host"]),
        (["--bundle", "nothing-of-that-name"], ["nothing-of-that-name"]),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ldp: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "tab\tin the middle of it", ""])
def test_a_weak_token_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LDP_TOKEN", token)
    assert main(["serve", "--port", "0"]) == 2
    assert "LDP_TOKEN: expected a token of at least 16" in capsys.readouterr().err
    (tmp_path / "token").write_text(token)
    assert main(["serve", "--port", "0", "--token-file", str(tmp_path / "token")]) == 2


@pytest.mark.parametrize(
    "option", ["--workers", "--queue", "--max-upload", "--max-megapixels", "--time-limit", "--grace"]
)
@pytest.mark.parametrize("value", ["0", "-1", "many", "nan"])
def test_limits_are_positive(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", option, value]) == 2
    assert f"got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "70000", "-1", "http"])
def test_a_port_is_one(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", port]) == 2
    assert f"expected a port from 0 to 65535, got '{port}'" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("app", "server"):  # imported again, which fails at fastapi
        monkeypatch.delitem(sys.modules, f"ldp_runtime.service.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    assert "needs the package fastapi, which is not installed; run pip install 'ldp[serve]'" in capsys.readouterr().err
