"""One service for all tests of this folder, and clients that speak to it as users do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running import Service, running_service
from tests.service.rest import Rest


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The real service, started as a user starts it."""
    with running_service(
        max_body_bytes=4_000_000, max_tasks_per_workflow=2_000, log_format="json"
    ) as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    """REST and WebSocket of the service."""
    with Rest(service.url) as rest:
        yield rest
