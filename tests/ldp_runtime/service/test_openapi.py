"""Requests that schemathesis makes of the service's own description: no 5xx, and every answer as described."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
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


@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_answers_are_as_described(examples: int) -> None:
    operations = []
    with served(FakeDeblurrer(), token=TOKEN) as (_, service):
        schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
        for found in schema.get_all_operations():
            operation = found.ok()
            operations.append(f"{operation.method.upper()} {operation.path}")

            @effort(examples)
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

            check()
    assert {"POST /v1/deblur", "POST /v1/restorations", "GET /v1/restorations/{id}/{file}"} <= set(operations)


def effort(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
