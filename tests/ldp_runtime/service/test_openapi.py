"""Requests that schemathesis makes of the service's own description: no 5xx, and every answer as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ldp_runtime.service.app import create_app
from tests.ldp_runtime.service.fakes import FakeDeblurrer, served

TOKEN = "a-token-of-16-letters"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    with served(FakeDeblurrer(), token=TOKEN) as (_, service):
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


schema = schemathesis.pytest.from_fixture("api")


def check(case: Any) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)


def effort(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@schema.parametrize()
@effort(5)
def test_some_requests(case: Any) -> None:
    check(case)


@pytest.mark.slow
@schema.parametrize()
@effort(200)
def test_many_requests(case: Any) -> None:
    check(case)
