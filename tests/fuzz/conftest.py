"""One service for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.settings import SETTINGS
from tests.running import Service, running_service
from tests.service.rest import Rest


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    """The real service, with limits that requests reach."""
    with running_service(**SETTINGS) as service:
        yield service


@pytest.fixture(scope="package")
def rest(service: Service) -> Iterator[Rest]:
    """REST and WebSocket of the service."""
    with Rest(service.url) as rest:
        yield rest
