"""NVRTC compiles every kernel for every architecture without spills, and the cache gives nothing but what was made."""

import os
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest

from ldp_runtime.cuda import compile as compiling
from ldp_runtime.cuda.compile import KERNELS, build, compile_kernels
from ldp_runtime.errors import BackendError

KERNEL_NAMES = {
    "blend",
    "blur_logits_f16",
    "blur_logits_f32",
    "blur_map",
    "finish_u8",
    "finish_u16",
    "finish_u8_turned",
    "finish_u16_turned",
    "prepare_u8_f16",
    "prepare_u8_f32",
    "prepare_u16_f16",
    "prepare_u16_f32",
}
SLOW_ARCHS = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_80", "sm_86", "sm_89", "sm_90")]
REPORT = re.compile(
    r"entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def nvrtc() -> None:
    """Skips where the extra cuda is not installed."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed")


@pytest.mark.parametrize("arch", ["sm_75", "sm_120", *SLOW_ARCHS])
def test_every_kernel_compiles_without_spills(arch: str) -> None:
    nvrtc()
    cubin, log = build(arch, ("-v",))
    assert cubin.startswith(b"\x7fELF")
    reports = REPORT.findall(log)
    assert {name for name, *_ in reports} == KERNEL_NAMES
    assert len(reports) == len(KERNEL_NAMES)
    for name, target, stack, stores, loads, registers in reports:
        assert (target, int(stack), int(stores), int(loads)) == (arch, 0, 0, 0), f"{name} spills on {arch}"
        # The 65536 registers of a multiprocessor hold 3 blocks of 256 threads, or 4 (FP16) or 3 of 128.
        limit = {"blur_logits_f16": 128, "blur_logits_f32": 168}.get(name, 80)
        assert int(registers) <= limit, f"{name}: {registers} registers on {arch}"
        assert name.encode() in cubin
    assert "warning" not in log, log


def test_the_host_build_has_every_kernel() -> None:
    source = (Path(__file__).parent / "shim" / "kernels_host.cpp").read_text(encoding="utf-8")
    assert set(re.findall(r"^CUDA_HOST_ENTRY\((\w+),", source, re.MULTILINE)) == KERNEL_NAMES


@pytest.mark.parametrize("arch", ["sm_7", "sm_70"])
def test_an_unknown_architecture_is_refused(arch: str, cache: Path) -> None:
    nvrtc()
    with pytest.raises(BackendError, match=f"^expected an architecture that NVRTC 1.* compiles for, got {arch}: "):
        compile_kernels(arch)
    assert not list(cache.rglob("*.cubin"))


def test_a_name_that_is_no_architecture_is_refused() -> None:
    with pytest.raises(BackendError, match="expected an architecture such as sm_89, got 'ada'"):
        compile_kernels("ada")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(BackendError, match=r"^expected cuda-core and NVRTC, got .*; pip install 'ldp\[cuda\]'$"):
        compile_kernels("sm_89")


# --- the cache: NVRTC is replaced by a function that counts -------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that were compiled, in order; the "cubin" says for which and how often."""
    archs: list[str] = []

    def fake(arch: str, ptxas_options: tuple[str, ...] = ()) -> tuple[bytes, str]:
        archs.append(arch)
        return f"cubin of {arch}, number {len(archs)}".encode() * 1000, ""

    monkeypatch.setattr(compiling, "build", fake)
    monkeypatch.setattr(compiling, "_nvrtc_version", lambda: (13, 0))
    return archs


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*"), key=lambda path: path.name)[1:]  # but the folder


def test_a_cubin_is_made_once(cache: Path, built: list[str]) -> None:
    first = compile_kernels("sm_89")
    assert compile_kernels("sm_89") == first
    assert built == ["sm_89"]
    assert compile_kernels("sm_120") != first
    assert built == ["sm_89", "sm_120"]
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".cubin"] * 2


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "swapped", "hash alone"])
def test_a_damaged_entry_is_made_again(damage: str, cache: Path, built: list[str]) -> None:
    compile_kernels("sm_89")
    (entry,) = cache.rglob("*.cubin")
    content = entry.read_bytes()
    entry.write_bytes(
        {
            "empty": b"",
            "short": content[:-1],
            "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
            "swapped": content[:32] + b"\x7fELF of somebody else",
            "hash alone": content[:32],
        }[damage]
    )
    again = compile_kernels("sm_89")
    assert built == ["sm_89", "sm_89"]
    assert again.startswith(b"cubin of sm_89, number 2")
    assert compile_kernels("sm_89") == again
    assert len(built) == 2


def test_other_sources_options_or_compilers_make_another_entry(
    cache: Path, built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_kernels("sm_89")
    sources = tmp_path / "kernels"
    shutil.copytree(KERNELS, sources)
    monkeypatch.setattr(compiling, "KERNELS", sources)
    compile_kernels("sm_89")
    assert len(built) == 1  # the content counts, not the place
    header = sources / "common.cuh"
    header.write_text(header.read_text(encoding="utf-8") + "\n")
    compile_kernels("sm_89")
    assert len(built) == 2
    monkeypatch.setattr(compiling, "_nvrtc_version", lambda: (13, 1))
    compile_kernels("sm_89")
    assert len(built) == 3
    monkeypatch.setattr(compiling, "_OPTIONS", {"std": "c++20", "fma": False})
    compile_kernels("sm_89")
    assert len(built) == 4


def test_it_goes_on_without_a_cache(tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "file"))
    assert compile_kernels("sm_89").startswith(b"cubin of sm_89, number 1")
    assert compile_kernels("sm_89").startswith(b"cubin of sm_89, number 2")


def test_a_full_disk_leaves_nothing_behind(cache: Path, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert compile_kernels("sm_89").startswith(b"cubin")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_concurrent_writers_and_readers_see_whole_entries(cache: Path, built: list[str]) -> None:
    wanted = re.compile(rb"(?:cubin of sm_(?:89|90), number \d+)+")
    failures: list[object] = []

    def work(arch: str) -> None:
        try:
            for turn in range(20):
                cubin = compile_kernels(arch)
                if not wanted.fullmatch(cubin) or f"sm_{arch[3:]}".encode() not in cubin[:20]:
                    failures.append(cubin[:40])
                if turn % 3 == 0:
                    for entry in cache.rglob("*.cubin"):
                        entry.unlink(missing_ok=True)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(arch,)) for arch in ("sm_89", "sm_90") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".cubin"] == []
