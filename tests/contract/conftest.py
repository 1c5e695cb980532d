"""What several suites need: an engine, a folder for values, a real PostgreSQL server."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

from tests import postgresql
from tests.contract.replicas import running_engine
from tests.postgresql import PostgresqlServer


@pytest.fixture(autouse=True, scope="module")
def _crashes_say_where(pytestconfig: pytest.Config) -> Iterator[None]:
    """Ray, shut down, leaves none of the handlers by which pytest names the place of a crash."""
    yield
    faulthandler.disable()
    faulthandler.enable(pytestconfig.stash[fault_handler_stderr_fd_key])


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """The engine of all tests of a module."""
    with running_engine():
        yield


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    return (tmp_path / "values").as_uri()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that runs."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    if postgresql.binaries() is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    with postgresql.server(fsync=False) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of a new, empty database."""
    with postgresql.new_database(postgresql_server) as url:
        yield url
