"""A real PostgreSQL server for the suites that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import postgresql
from tests.postgresql import PostgresqlServer


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
