"""Connections to SQLite and PostgreSQL, set up so that what is committed is durable.

All that differs between the two databases is here and in the choice of INSERT in `statements.py`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.pool import ConnectionPoolEntry

from lattice.errors import InvalidRequestError, StoreRefusedError, StoreUnavailableError

_DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg"}
_ALLOWED = "use memory:, sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"

#: How long one waits for another's lock, in seconds, unless the URL says otherwise.
_LOCK_WAIT = 30
#: How long reaching a PostgreSQL server may take, in seconds, unless the URL says otherwise.
_CONNECT_WAIT = 10
#: When a PostgreSQL server that says nothing counts as away, unless the URL says otherwise: after so many
#: milliseconds without a sign that what was sent has arrived, and after so many seconds of silence.
_SILENCE = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
#: Lost connections, locks, full disks; InternalError is also that of a server that takes no writes just now.
_AWAY = (OperationalError, InterfaceError, InternalError)


def connect(url: str) -> Engine:
    """An engine for the database at `url`. An SQLite file and its folder are made if they are new.

    Raises:
        InvalidRequestError: `url` is not one of a supported database, or its driver is missing.
        StoreRefusedError: the SQLite file cannot be made or used.
    """
    try:
        parsed = make_url(url)
        found = parsed.render_as_string(hide_password=True)
        driver = parsed.get_driver_name()
    except (ArgumentError, ValueError) as error:
        # What cannot be parsed may still hold a password.
        raise InvalidRequestError(
            "store_url", repr(url.partition(":")[0]) + ", not a database URL", _ALLOWED
        ) from error
    if _DRIVERS.get(parsed.get_backend_name()) != driver:
        raise InvalidRequestError("store_url", found, _ALLOWED)
    try:
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed)
        return _postgresql(parsed)
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            "store_url", found, f"the driver is missing: pip install 'lattice[postgres]' ({error})"
        ) from error
    except ValueError as error:
        raise InvalidRequestError("store_url", found, str(error)) from error


def for_writing(engine: Engine) -> Engine:
    """`engine` for transactions that write: in SQLite they take the write lock when they begin.

    A transaction that begins by reading and takes the lock with its first write is refused at once,
    without waiting, if somebody else has written in between. And the lease must not change between
    the moment when it is checked and the commit.
    """
    return engine.execution_options(lattice_writes=True)


def for_reading(engine: Engine) -> Engine:
    """`engine` for transactions that read: all of their statements see the same state."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


@contextmanager
def refusals_as_unavailable() -> Iterator[None]:
    """Turns what the database refuses into StoreUnavailableError with the database's own words.

    What would be refused again becomes StoreRefusedError.
    """
    try:
        yield
    except DBAPIError as error:
        away = error.connection_invalidated or isinstance(error, _AWAY)
        # "Program limit exceeded", such as a key that is too long for its index, is operational to the driver.
        away = away and not (getattr(error.orig, "sqlstate", None) or "").startswith("54")
        kind = StoreUnavailableError if away else StoreRefusedError
        raise kind(f"database: {str(error.orig).strip()}") from error
    except NoFreeConnection as error:
        raise StoreUnavailableError("database: all connections are busy") from error
    except UnicodeEncodeError as error:
        raise StoreRefusedError(f"database: text that is not Unicode: {error}") from error


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError(f"an SQLite database must be a file by its path; {_ALLOWED}")
    # SQLite itself waits for locks (busy_timeout), as long as the driver is told here.
    waits = {} if "timeout" in url.query else {"timeout": _LOCK_WAIT}
    engine = create_engine(url, connect_args=waits, hide_parameters=True)
    _make_private(Path(url.database))
    _log_ahead(url.database)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(path: Path) -> None:
    """Makes the file and its folder for nobody but this user: it will hold code and results."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise StoreRefusedError(f"database: {error}") from error


def _log_ahead(path: str) -> None:
    """Switches the file to a write-ahead log, for good.

    With it readers go on while one writes, and a commit is one append and one fsync.
    """
    deadline = time.monotonic() + _LOCK_WAIT
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_WAIT)) as connection:
            while True:
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    # Where two processes open a new file at once, SQLite refuses one of them this
                    # statement without the wait that it was told.
                    busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                    if not busy or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
    except sqlite3.Error as error:
        raise StoreRefusedError(f"database: {error}") from error


def _set_up_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver would begin transactions by itself, and too late: see `_begin_sqlite`.
    connection.isolation_level = None
    # FULL: each commit is fsynced. With NORMAL the last commits are lost when the machine stops.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("lattice_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: URL) -> Engine:
    waits = {
        name: value
        for name, value in {"connect_timeout": _CONNECT_WAIT, **_SILENCE}.items()
        if name not in url.query
    }
    # Pooled connections are tried before use: those from before a restart of the server are replaced.
    engine = create_engine(url, connect_args=waits, hide_parameters=True, pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # Nothing waits for ever, and a writer whose machine vanished does not keep its locks for hours.
    cursor.execute(f"SET lock_timeout = '{_LOCK_WAIT}s'")
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{_LOCK_WAIT}s'")
    cursor.close()
    connection.commit()
