"""Alembic's entry: runs revisions in the transaction that `lattice.store.schema.upgrade` has begun."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
