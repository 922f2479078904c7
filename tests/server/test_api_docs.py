"""The OpenAPI document says what the server does: every route, every body, every answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import PATIENCE_S, ServerProcess

from qwell.server.app import api_routes
from qwell.server.service import Service


@pytest.fixture
def document(server: ServerProcess) -> dict[str, Any]:
    return dict(requests.get(f"{server.url}/openapi.json", timeout=PATIENCE_S).json())


@pytest.fixture
def operations(server: ServerProcess, document: dict[str, Any]) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    return [operation.ok() for operation in schema.get_all_operations()]


def check_operation(operation: Any, mode: GenerationMode) -> None:
    """Requests of one kind; not all that fit the schema are sound, but none that do not are."""

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(timeout=PATIENCE_S, excluded_checks=[positive_data_acceptance])

    check()


def test_answers_fit(server: ServerProcess, operations: list[Any]) -> None:
    for operation in operations:
        check_operation(operation, GenerationMode.POSITIVE)
    check_well(server)


def test_bodies_that_do_not_fit_are_refused(server: ServerProcess, operations: list[Any]) -> None:
    with_body = [operation for operation in operations if operation.body]
    assert len(with_body) >= 4
    for operation in with_body:
        check_operation(operation, GenerationMode.NEGATIVE)
    check_well(server)


def check_well(server: ServerProcess) -> None:
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"
    assert "Traceback" not in server.log


def test_every_route_is_there(document: dict[str, Any]) -> None:
    service = Service(engine=None, text=None, served_model_names=(), max_body_bytes=1)  # type: ignore[arg-type]
    served = {route.path.replace(":path", "") for route in api_routes(service)}

    assert served - {"/docs", "/metrics", "/openapi.json"} == set(document["paths"])


def test_the_page_has_every_route_and_type(server: ServerProcess, document: dict[str, Any]) -> None:
    answer = requests.get(f"{server.url}/docs", timeout=PATIENCE_S)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'none'" in answer.headers["content-security-policy"]
    for path in document["paths"]:
        assert path in answer.text
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in answer.text
    assert set(re.findall(r'href="#(\w+)"', answer.text)) <= set(document["components"]["schemas"])
