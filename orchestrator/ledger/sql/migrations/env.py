"""How Alembic runs a migration: on the connection that `migrations.upgrade` and `downgrade` hand over."""

from __future__ import annotations

from alembic import context

from orchestrator.ledger.sql.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
