from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.ldp_runtime.service.fakes import FakeDeblurrer, Served, served


@pytest.fixture
def deblurrer() -> FakeDeblurrer:
    return FakeDeblurrer()


@pytest.fixture
def running(deblurrer: FakeDeblurrer) -> Iterator[Served]:
    with served(deblurrer) as running:
        yield running


@pytest.fixture
def client(running: Served) -> TestClient:
    return running[0]
