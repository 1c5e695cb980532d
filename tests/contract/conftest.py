"""A real PostgreSQL server for the suites that need one, started from the installed binaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Path]:
    """The folder of the socket of a server that trusts everybody who can reach it."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    if postgresql.binaries() is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    # Tests do not cut the power, so they need no fsync.
    with postgresql.server(fsync=False) as folder:
        yield folder


@pytest.fixture
def postgresql_url(postgresql_server: Path) -> Iterator[str]:
    """The URL of a new, empty database."""
    with postgresql.new_database(postgresql_server) as url:
        yield url
