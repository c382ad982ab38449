"""Runs a migration on the connection passed by `migrations.upgrade` or `downgrade`."""

from __future__ import annotations

from alembic import context

from orchestrator.ledger.sql.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
