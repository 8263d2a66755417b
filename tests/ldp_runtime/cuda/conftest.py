from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldp_runtime.registry
from ldp_runtime.deblurrer import Deblurrer
from tests.ldp_runtime.cuda.host_device import HostBackend, HostDevice


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Callable[..., tuple[Deblurrer, HostDevice]]:
    """Makes a deblurrer on a host device; arguments are those of both."""

    def make(
        path: Path = bundle,
        *,
        precision: str = "fp32",
        deblur: Any = None,
        cut: Path | None = None,
        tile: int | str = "auto",
        **device: Any,
    ) -> tuple[Deblurrer, HostDevice]:
        backend = HostBackend(HostDevice(**device), precision, deblur=deblur, folder=cut)
        backends = {**ldp_runtime.registry.BACKENDS, "host": backend}
        monkeypatch.setattr(ldp_runtime.registry, "BACKENDS", backends)
        return Deblurrer.from_bundle(path, backend="host", tile=tile), backend.device

    return make
