"""One service for all tests of this folder, and clients that speak to it as users do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Service, running_service
from tests.service.rest import Rest


@pytest.fixture(scope="package")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the one secret `API_KEY`."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "API_KEY").write_text(f"s3cr3t-{uuid.uuid4().hex}")
    return folder


@pytest.fixture(scope="package")
def service(secrets: Path) -> Iterator[Service]:
    """The real service, started as a user starts it."""
    with running_service(
        max_body_bytes=5_000_000,
        max_tasks_per_workflow=2_000,
        log_format="json",
        secrets_dir=str(secrets),
    ) as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    """REST and WebSocket of the service."""
    with Rest(service.url) as rest:
        yield rest
