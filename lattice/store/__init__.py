"""Durable state behind `lattice.ports.store.Store`: in memory for tests, in SQLite or PostgreSQL for use."""

from __future__ import annotations

from lattice.ports.store import Store
from lattice.store.database import connect
from lattice.store.memory import MemoryStore
from lattice.store.schema import upgrade
from lattice.store.sql import SqlStore

__all__ = ["MemoryStore", "SqlStore", "open_store"]


def open_store(url: str) -> Store:
    """The store at `url`, which is created if it is new and migrated if it is of an older version.

    `memory:` is a new empty store that ends with this process. `sqlite:///PATH` and
    `postgresql+psycopg://...` are SQLAlchemy URLs.

    Raises:
        InvalidRequestError: `url` is neither, or its driver is not installed.
        StoreUnavailableError: the database cannot be reached, or is of a newer version of Lattice.
    """
    if url == "memory:":
        return MemoryStore()
    engine = connect(url)
    try:
        upgrade(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)
