"""Tests of the client that need no server; ``test_serve.py`` has the others."""

import sys

import pytest

from ldp_export.triton import client


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setattr(sys, "argv", ["client.py", "left.png", "right.png", "-o", "sharp.png"])
    with pytest.raises(SystemExit, match=r"tritonclient .*; pip install 'tritonclient\[grpc,http\]'"):
        client.main()
