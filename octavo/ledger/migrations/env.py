"""Alembic's entry: runs revisions on the connection that `octavo.ledger.migrate` gives it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
