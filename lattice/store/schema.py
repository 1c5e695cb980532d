"""Brings a database to the schema of this version of Lattice, by the revisions in `migrations/`."""

from __future__ import annotations

import threading

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from lattice.errors import StoreRefusedError
from lattice.store.database import for_writing, refusals_as_unavailable

#: Any number that nobody else locks in the same PostgreSQL database.
_LOCK_UPGRADE = text("SELECT pg_advisory_xact_lock(5283740916)")

#: Alembic keeps the migration under way in global variables.
_one_upgrade = threading.Lock()


def upgrade(engine: Engine) -> None:
    """Applies the revisions that the database lacks, all of them or none.

    Processes that do this at once wait for each other: in SQLite with the write lock that the
    transaction begins with, in PostgreSQL with an advisory lock, for there is no table to lock yet.

    Raises:
        StoreUnavailableError: the database cannot be reached.
        StoreRefusedError: it has a revision that is not known here; nothing was changed.
    """
    with (
        _one_upgrade,
        refusals_as_unavailable(),
        for_writing(engine).begin() as connection,
    ):
        if connection.dialect.name == "postgresql":
            connection.execute(_LOCK_UPGRADE)
        config = Config()
        config.set_main_option("script_location", "lattice.store:migrations")
        config.attributes["connection"] = connection
        _check_known(connection, ScriptDirectory.from_config(config))
        command.upgrade(config, "head")


def _check_known(connection: Connection, script: ScriptDirectory) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    unknown = ", ".join(sorted(set(found) - known))
    if unknown:
        raise StoreRefusedError(
            f"database: it is at revision {unknown}, which this version of Lattice does not know "
            f"(its newest is {script.get_current_head()}); a newer version has used it: run that one"
        )
