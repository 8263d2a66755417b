import errno
import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime import Deblurrer
from ldp_runtime.batch import local, report, work
from ldp_runtime.batch.journal import JOURNAL_FILE, Journal
from ldp_runtime.cli import main
from ldp_runtime.errors import BackendError, NumericsError
from ldp_runtime.host import HostChain
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import read_photo, write_photo, write_pixels
from ldp_runtime.images.quality import against_target
from tests.ldp_runtime.batch.folders import command, hold, make_pairs, outputs, start, wait_for
from tests.ldp_runtime.conftest import H, W
from tests.ldp_runtime.images.pictures import noise
from tests.ldp_runtime.images.raw_files import dng, small_dng

PAIRS = 4
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pairs(tmp_path / "in", PAIRS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bundle: Path, source: Path, out: Path) -> Run:
    """Runs ``ldp batch source out`` in this process: exit code, stdout, stderr."""

    def call(*options: object) -> tuple[int, str, str]:
        code = main(command(source, out, bundle, *options))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the pairs that inference is started on."""
    calls: list[int] = []
    real = Deblurrer.start

    def count(self: HostChain, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Deblurrer, "start", count)
    return calls


@pytest.fixture
def before_each(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Installs a function that is called before each restoration."""
    real = HostChain._run

    def install(hook: Callable[[], object]) -> None:
        monkeypatch.setattr(HostChain, "_run", lambda self, *arguments: (hook(), real(self, *arguments))[1])

    return install


def log(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "ldp-batch.json").read_text(encoding="utf-8")))


def test_restores_what_deblur_restores(run: Run, source: Path, out: Path, bundle: Path, tmp_path: Path) -> None:
    code, printed, err = run("--blur-map", "npy", "--axis", "vertical", "--swap")
    assert (code, err) == (0, "")
    assert printed.startswith(f"{PAIRS} pairs: {PAIRS} restored, 0 skipped, 0 failed; ")
    deblurrer = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)
    for i in range(PAIRS):
        left, right = (read_photo(source / f"{i:02}/pair_{view}.png").pixels for view in "LR")
        expected = deblurrer(right, left, axis="vertical")
        np.testing.assert_array_equal(read_photo(out / f"{i:02}/pair.png").pixels, expected.restored)
        np.testing.assert_array_equal(np.load(out / f"{i:02}/pair_blur.npy"), expected.blur_map)
    assert len(outputs(out)) == 2 * PAIRS
    one = tmp_path / "one.png"
    views = (source / "00/pair_L.png", source / "00/pair_R.png")
    arguments = ["deblur", *map(str, views), "-o", str(one), *command(source, out, bundle)[3:]]
    assert main([*arguments, "--axis", "vertical", "--swap", "-q"]) == 0
    assert one.read_bytes() == (out / "00/pair.png").read_bytes()


def test_metadata_depth_and_format(run: Run, source: Path, out: Path) -> None:
    for view in "LR":
        pixels = read_photo(source / f"00/pair_{view}.png").pixels.astype(np.uint16) * 257
        write_photo(source / f"00/pair_{view}.png", Photo(pixels, icc_profile=b"a profile", dpi=(300.0, 300.0)))
    assert run("--format", "tiff", "-q") == (0, "", "")
    photo = read_photo(out / "00/pair.tif")
    assert (photo.pixels.dtype, photo.icc_profile) == (np.uint16, b"a profile")
    assert photo.dpi == pytest.approx((300, 300), abs=0.01)
    assert set(outputs(out)) == {f"{i:02}/pair.tif" for i in range(PAIRS)}


def test_json_report_and_log(run: Run, out: Path) -> None:
    code, printed, err = run("--json")
    assert (code, err) == (0, "")
    fields = json.loads(printed)
    assert (fields["pairs"], fields["restored"], fields["skipped"], fields["failed"]) == (PAIRS, PAIRS, 0, 0)
    assert fields["megapixels"] == pytest.approx(PAIRS * H * W / 1e6)
    assert fields["ran"] == {"onnxruntime fp32": PAIRS}
    assert {"read", "deblur", "write"} <= fields["stages"].keys()
    assert fields.pop("log") == str(out / "ldp-batch.json")
    assert fields == log(out)


def test_targets_give_a_table(run: Run, source: Path, out: Path, tmp_path: Path, starts: list[int]) -> None:
    targets = tmp_path / "targets"
    for i in range(PAIRS - 1):
        (targets / f"{i:02}").mkdir(parents=True)
        shutil.copy(source / f"{i:02}/pair_L.png", targets / f"{i:02}/pair.png")
    code, printed, err = run("--target", targets)
    assert code == 0
    assert "1 pair without a target" in err
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [*(f"{i:02}/pair.png" for i in range(PAIRS - 1)), "mean"]
    assert re.fullmatch(r"mean +(\d+\.\d\d dB +0\.\d{4} *){2}", lines[4])
    _, printed, _ = run("--target", targets, "--json")  # from the journal
    quality = json.loads(printed)["quality"]
    assert len(starts) == PAIRS
    left, right, restored = (
        read_photo(path).pixels for path in (source / "00/pair_L.png", source / "00/pair_R.png", out / "00/pair.png")
    )
    assert quality["00/pair.png"] == against_target(left, right, restored, left)
    shutil.copy(source / "01/pair_L.png", targets / "00/pair.png")
    run("--target", targets)
    assert len(starts) == PAIRS + 1


def test_the_target_of_a_pixel_capture(
    tmp_path: Path, out: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/20240101_left", "in/20240101_right", "targets/20240101"):
        path = tmp_path / f"{name}.pgm"
        path.parent.mkdir(exist_ok=True)
        write_pixels(path, np.linspace(4096, 65535, 12 * 40).astype(np.uint16).reshape(12, 40))
    assert (
        main(command(tmp_path / "in", out, bundle, "--target", tmp_path / "targets", "--check", "off", "--json")) == 0
    )
    (quality,) = json.loads(capsys.readouterr().out)["quality"].values()
    assert quality["center_view"]["psnr_db"] is None, "the views are equal to the target"


def test_files_that_hold_both_views(
    tmp_path: Path, out: Path, bundle: Path, capsys: pytest.CaptureFixture[str], starts: list[int]
) -> None:
    source = tmp_path / "card"
    source.mkdir()
    (source / "a.dng").write_bytes(small_dng())
    (source / "b.DNG").write_bytes(dng([noise(32, 40, dtype=np.uint16)]))
    arguments = command(source, out, bundle)
    assert main(arguments) == 1
    _, err = capsys.readouterr()
    assert "b.DNG is not a dual-pixel photo" in err
    assert read_photo(out / "a.tif").pixels.dtype == np.uint16
    assert len(starts) == 1
    assert main(arguments) == 1  # the journal knows a.dng
    assert len(starts) == 1
    assert main([*arguments, "--swap"]) == 1
    assert len(starts) == 2


def test_side_by_side(tmp_path: Path, out: Path, bundle: Path, source: Path, run: Run) -> None:
    run()
    abreast = tmp_path / "abreast"
    (abreast / "00").mkdir(parents=True)
    views = [read_photo(source / f"00/pair_{side}.png").pixels for side in "LR"]
    write_photo(abreast / "00/pair.png", Photo(np.concatenate(views, axis=1)))
    assert main(command(abreast, tmp_path / "other", bundle, "--side-by-side")) == 0
    np.testing.assert_array_equal(
        read_photo(tmp_path / "other/00/pair.png").pixels, read_photo(out / "00/pair.png").pixels
    )


def test_dry_run_writes_nothing(run: Run, out: Path, starts: list[int]) -> None:
    code, printed, _ = run("--dry-run")
    assert code == 0
    assert printed.count("restore  ") == PAIRS
    assert not out.exists()
    run()
    code, printed, _ = run("--dry-run", "--json")
    assert [job["done"] for job in json.loads(printed)] == [True] * PAIRS
    assert len(starts) == PAIRS


def test_a_second_run_infers_nothing(run: Run, source: Path, out: Path, starts: list[int]) -> None:
    run()
    before = outputs(out)
    starts.clear()
    code, printed, _ = run()
    assert (code, starts) == (0, [])
    assert f"0 restored, {PAIRS} skipped" in printed
    assert outputs(out) == before


@pytest.mark.parametrize("options", [("--axis", "vertical"), ("--swap",), ("--tile", "off"), ("--precision", "fp16")])
def test_other_options_restore_again(run: Run, starts: list[int], options: tuple[str, ...]) -> None:
    run()
    starts.clear()
    assert run(*options)[0] == 0
    assert len(starts) == PAIRS


def test_another_bundle_restores_again(
    source: Path, out: Path, bundle: Path, bundle_without_clip: Path, starts: list[int]
) -> None:
    for each in (bundle, bundle_without_clip):
        assert main(command(source, out, each, "-q")) == 0
    assert len(starts) == 2 * PAIRS


def test_only_what_changed_is_restored_again(run: Run, source: Path, out: Path, starts: list[int]) -> None:
    run("--blur-map", "png", "--check", "warn")
    before = outputs(out)
    damaged = out / "00/pair.png"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")  # the same size
    (out / "01/pair_blur.png").unlink()
    for path in (source / "02/pair_L.png", out / "02/pair.png"):  # another time, the same content
        os.utime(path, ns=(0, 0))
    shutil.copy(source / "00/pair_R.png", source / "03/pair_R.png")
    starts.clear()
    code, printed, _ = run("--blur-map", "png", "--check", "warn")
    assert code == 0
    assert "3 restored, 1 skipped" in printed
    assert len(starts) == 3
    after = outputs(out)
    assert {name for name in after if after[name] != before[name]} == {"03/pair.png", "03/pair_blur.png"}


def test_verify_finds_damage_that_keeps_size_and_time(run: Run, out: Path, starts: list[int]) -> None:
    run()
    before = outputs(out)
    path = out / "00/pair.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    starts.clear()
    run()
    assert starts == []
    run("--verify")
    assert len(starts) == 1
    assert outputs(out) == before


def test_a_file_that_no_run_wrote_is_not_replaced(run: Run, out: Path, starts: list[int]) -> None:
    (out / "01").mkdir(parents=True)
    (out / "01/pair.png").write_bytes(b"precious")
    code, _, err = run()
    assert code == 2
    assert "expected only outputs of ldp batch" in err and "01/pair.png; " in err and "--overwrite" in err
    assert outputs(out) == {"01/pair.png": b"precious"}
    assert starts == []
    for count in (1, 2):
        assert run("--overwrite")[0] == 0
        assert len(outputs(out)) == PAIRS
        assert len(starts) == count * PAIRS


def test_a_torn_line_of_the_journal_costs_one_pair(run: Run, out: Path, starts: list[int]) -> None:
    run()
    journal = out / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes()[:-20])
    starts.clear()
    assert run()[0] == 0
    assert len(starts) == 1
    assert run()[0] == 0
    assert len(starts) == 1


def test_two_runs_do_not_write_into_one_folder(run: Run, out: Path) -> None:
    with Journal(out):
        code, _, err = run()
    assert code == 2
    assert "is in use by another ldp batch" in err
    assert run()[0] == 0


def test_a_damaged_pair_leaves_the_others_alone(run: Run, source: Path, out: Path, starts: list[int]) -> None:
    (source / "01/pair_R.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    write_photo(source / "02/pair_R.png", Photo(np.zeros((H, W + 1, 3), np.uint8)))
    code, printed, err = run()
    assert code == 1
    assert "2 restored, 0 skipped, 2 failed" in printed
    assert set(outputs(out)) == {"00/pair.png", "03/pair.png"}
    lines = err.splitlines()
    assert lines[0].startswith("ldp: failed: 01/pair.png: ") and "damaged or truncated" in lines[0]
    assert lines[1].startswith("ldp: failed: 02/pair.png: ") and f"{W + 1} x {H} px" in lines[1]
    assert lines[2].startswith("ldp: failed: 2 of 4 pairs, listed in ")
    failures = log(out)["failures"]
    assert [failure["name"] for failure in failures] == ["01/pair.png", "02/pair.png"]
    assert failures[0]["right"] == str(source / "01/pair_R.png")
    starts.clear()
    make_pairs(source, PAIRS)  # fixed
    assert run()[0] == 0
    assert len(starts) == 2


def test_errors_of_single_pairs(run: Run, out: Path, before_each: Any) -> None:
    """One that the network fails on, one that does not fit into memory, one that shows a bug of ours."""
    errors = iter([NumericsError("NaN appeared"), MemoryError(), ZeroDivisionError("oh"), None])

    def fail() -> None:
        if (error := next(errors)) is not None:
            raise error

    before_each(fail)
    code, _, err = run()
    assert code == 1
    assert set(outputs(out)) == {"03/pair.png"}
    failures = log(out)["failures"]
    assert "NaN appeared" in failures[0]["error"]
    assert "out of memory" in failures[1]["error"]
    assert "ZeroDivisionError: oh (a bug" in failures[2]["error"]
    assert "in fail" in failures[2]["traceback"]
    assert "Traceback" not in err


def test_a_backend_that_fails_every_time_ends_the_run(run: Run, out: Path, before_each: Any) -> None:
    def fail() -> None:
        raise BackendError("the device is lost")

    before_each(fail)
    code, _, err = run()
    assert code == 2
    assert "the backend failed on 3 pairs in a row, so the run ends: the device is lost; 0 of 4 pairs" in err
    assert (log(out)["ended"], log(out)["left"]) == ("stopped", 1)


def test_a_full_disk_ends_the_run(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    room = [1]

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "pair.png":
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room.pop()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    code, _, err = run("--io-threads", "1")
    assert code == 2
    assert "No space left on device; free some space or choose another folder; 1 of 4 pairs done" in err
    assert "run the same command again to continue" in err
    assert set(outputs(out)) == {"00/pair.png"}
    assert log(out)["failures"] == []
    monkeypatch.undo()
    assert run()[0] == 0
    assert len(outputs(out)) == PAIRS


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_folder_that_is_read_only(run: Run, out: Path, starts: list[int]) -> None:
    out.mkdir(mode=0o500)
    code, _, err = run()
    assert (code, starts) == (2, [])
    assert f"{out} cannot be written: Permission denied; choose another folder" in err


def test_an_output_folder_that_cannot_be_made(source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file there is no folder, not even for root."""
    code = main(command(source, source / "00/pair_L.png/out", bundle))
    assert code == 2
    err = capsys.readouterr().err
    assert "choose another folder" in err or "choose another output folder" in err
    assert err.count("\n") == 1


def test_the_log_elsewhere(run: Run, out: Path, tmp_path: Path, starts: list[int]) -> None:
    code, _, err = run("--log", tmp_path / "missing" / "log.json")
    assert (code, starts) == (2, [])
    assert "missing does not exist; make it first" in err
    assert run("--log", tmp_path / "log.json")[0] == 0
    assert json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))["restored"] == PAIRS
    assert not (out / "ldp-batch.json").exists()


def test_wrong_inputs(
    source: Path, bundle: Path, bundle_without_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text("left,right\n")
    for arguments, words in [
        (command(tmp_path / "missing", tmp_path / "out", bundle), "missing does not exist"),
        (command(source, source, bundle), "is the folder of the views"),
        (command(source, tmp_path / "out", bundle, "--target", source), "expected one of targets alone"),
        (command(source / "00/pair_L.png", tmp_path / "out", bundle), "expected a folder or a .csv"),
        (command(tmp_path / "empty.csv", tmp_path / "out", bundle), "lists no pairs"),
        (command(source, tmp_path / "out", bundle, "--workers", 2), "expected --ray ADDRESS|local with --workers"),
        (command(source, tmp_path / "out", "no-such-bundle"), "no-such-bundle"),
        (command(source, tmp_path / "out", bundle_without_clip, "--blur-map", "png"), "'mapless' has no blur map"),
    ]:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


def test_reading_and_writing_go_on_while_a_pair_is_restored(
    run: Run, before_each: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pair's restoration waits for the third to be read, the third's for the first to be written."""
    third_read, first_written = threading.Event(), threading.Event()
    monkeypatch.setattr(local, "read", _signalling(work.read, lambda job: job.name == "02/pair.png", third_read))
    monkeypatch.setattr(
        local, "write", _signalling(work.write, lambda restored: restored.read.job.name == "00/pair.png", first_written)
    )
    waits = iter([third_read, None, first_written, None])

    def wait() -> None:
        if (event := next(waits)) is not None:
            assert event.wait(60)

    before_each(wait)
    assert run("--io-threads", "1")[0] == 0


def _signalling(step: Callable[..., Any], is_it: Callable[[Any], bool], event: threading.Event) -> Callable[..., Any]:
    def call(item: Any, *more: Any) -> Any:
        result = step(item, *more)
        if is_it(item):
            event.set()
        return result

    return call


def test_pairs_in_memory_are_bounded(run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pairs there are, so many at most have been read and not yet written."""
    make_pairs(source, 12)
    in_memory, most, lock = 0, 0, threading.Lock()

    def read(*arguments: Any) -> Any:
        nonlocal in_memory, most
        with lock:
            in_memory += 1
            most = max(most, in_memory)
        return work.read(*arguments)

    def write(*arguments: Any) -> Any:
        nonlocal in_memory
        result = work.write(*arguments)
        with lock:
            in_memory -= 1
        return result

    monkeypatch.setattr(local, "read", read)
    monkeypatch.setattr(local, "write", write)
    assert run("--io-threads", "1")[0] == 0
    assert 2 <= most <= 5  # one read ahead, two started on, one being written and one that waits for it


def test_lines_in_place_of_a_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LINE_SECONDS", 0.0)
    _, _, err = run()
    lines = err.splitlines()
    assert len(lines) == PAIRS
    assert lines[-1].startswith(f"{PAIRS}/{PAIRS} pairs, 0 failed, ") and lines[-1].endswith("about 0:00:00 left")


def test_an_interrupt_keeps_finished_pairs(run: Run, out: Path, starts: list[int], before_each: Any) -> None:
    calls = iter(range(2 * PAIRS))

    def interrupt() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    before_each(interrupt)
    code, _, err = run()
    assert code == 130
    assert "ldp: interrupted: 2 of 4 pairs done and no file half-written; run the same command again" in err
    assert set(outputs(out)) == {"00/pair.png", "01/pair.png"}
    assert log(out)["ended"] == "interrupted"
    starts.clear()
    assert run()[0] == 0
    assert len(starts) == 2


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> tuple[Path, dict[str, bytes]]:
    """Many pairs, and the outputs of a run over them that nothing disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    source = make_pairs(folder / "in", 40)
    assert main(command(source, folder / "out", bundle, "-q", "--blur-map", "png")) == 0
    return source, outputs(folder / "out")


@pytest.mark.usefixtures("heeds_sigint")
def test_ctrl_c(unbroken: tuple[Path, dict[str, bytes]], bundle: Path, out: Path, tmp_path: Path) -> None:
    source, expected = unbroken
    arguments = command(source, out, bundle, "--blur-map", "png")
    go = hold(tmp_path, "39")
    process = start(arguments, path=tmp_path)
    wait_for(process, out, 1)
    process.send_signal(signal.SIGINT)
    go.touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "ldp: interrupted: " in err and "Traceback" not in err
    assert outputs(out).items() <= expected.items()
    assert main([*arguments, "-q"]) == 0
    assert outputs(out) == expected


@pytest.mark.slow
def test_kill_9(unbroken: tuple[Path, dict[str, bytes]], bundle: Path, out: Path, tmp_path: Path) -> None:
    """A run is killed a dozen times, at random moments; its files are whole, and the next one continues."""
    source, expected = unbroken
    arguments = command(source, out, bundle, "--blur-map", "png", "-q")
    rng = random.Random(0)
    hold(tmp_path, "39")
    for count in range(1, 13):
        process = start(arguments, path=tmp_path)
        wait_for(process, out, 2 * count)
        threading.Event().wait(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        left = {name: data for name, data in outputs(out).items() if not name.endswith(".tmp")}
        assert left.items() <= expected.items()
    assert main(arguments) == 0
    assert outputs(out) == expected  # no temporary file either


def test_temporary_files_of_a_killed_run_are_removed(run: Run, out: Path) -> None:
    (out / "00").mkdir(parents=True)
    stale = out / "00" / ".pair.png.12345.tmp"
    others = [out / "00" / name for name in (".other.png.12345.tmp", ".pair.png.tmp", "pair.png.1.tmp")]
    for path in (stale, *others):
        path.write_bytes(b"half")
    assert run()[0] == 0
    assert not stale.exists()
    assert all(path.exists() for path in others)
    assert read_photo(out / "00/pair.png").pixels.shape == (H, W, 3)
