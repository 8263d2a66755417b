import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.bundle.npy_files import read_npy, read_npz


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">u2"),
        np.zeros((0, 3)),
        np.array(True),
    ],
)
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    read = read_npy(npy(array))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert read.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        pickle.dumps([1]),
        npy(np.zeros(3))[:-1],
        npy(np.zeros(3)) + b"\0",
        npy(np.array(["text"])),
        npy(np.zeros(2, [("a", "u1")])),
        npy(np.zeros(2, "datetime64[s]")),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", pickle.dumps([1])),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 10000000000)}\n"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}\n"),
        with_header("(" * 4000),
        with_header(" " * 60000),
        with_header("__import__('os').abort()"),
    ],
)
def test_anything_else_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        read_npy(content)
    assert "\n" not in str(caught.value)


def archive(path: Path, **members: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_archives_are_read_up_to_a_size(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", a=npy(np.ones(3)), b=npy(np.zeros(10**6)))
    assert path.stat().st_size < 10**5
    np.testing.assert_array_equal(read_npz(path, ["a"], 10**5)["a"], np.ones(3))
    with pytest.raises(ValueError, match="more than"):
        read_npz(path, ["b"], 10**6)
    with pytest.raises(ValueError, match="more than"):
        read_npz(path, ["a", "b"], 10**5)
    with pytest.raises(ValueError, match="no archive of arrays"):
        read_npz(path, ["c"], 10**5)
    for content in (b"", b"PK\x03\x04", npy(np.ones(3)), path.read_bytes()[:-30]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"no archive of arrays|a file of more than"):
            read_npz(tmp_path / "b.npz", ["a"], 1000)


def test_an_archive_has_no_more_bytes_than_its_arrays_may_have(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", a=npy(np.ones(3)))
    path.write_bytes(bytes(2000) + path.read_bytes())
    with pytest.raises(ValueError, match="a file of more than 1000 bytes"):
        read_npz(path, ["a"], 1000)


def test_a_packing_that_claims_memory_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.npy", npy(np.ones(3)))
    with pytest.raises(ValueError, match="a is packed with method 14"):
        read_npz(tmp_path / "a.npz", ["a"], 1000)
