"""A real PostgreSQL server for the suites that need one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.postgresql import PostgresqlServer, binaries

_names = itertools.count(1)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that runs."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    server = PostgresqlServer(programs)
    try:
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        server.remove()


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of a new, empty database."""
    import psycopg

    name = f"lattice_{next(_names)}"
    maintenance = f"host={postgresql_server.folder} user=lattice dbname=postgres"
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgresql_server.url(name)
        # By force: a connection that a test left open would be found as a leak, not here.
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
