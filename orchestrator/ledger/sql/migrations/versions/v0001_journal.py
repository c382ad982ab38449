"""The journal: events, runs, quarantine and spool cursors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.ledger.sql.append_only import statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables and their triggers."""
    op.create_table(
        "events",
        sa.Column("seq", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("recorded_ns", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("lease_id", sa.Text(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("event_id"),
    )
    op.create_index(
        "events_of_no_lease",
        "events",
        ["type", "seq"],
        sqlite_where=sa.text("lease_id IS NULL"),
        postgresql_where=sa.text("lease_id IS NULL"),
    )
    op.create_index(
        "events_of_lease",
        "events",
        ["lease_id"],
        sqlite_where=sa.text("lease_id IS NOT NULL"),
        postgresql_where=sa.text("lease_id IS NOT NULL"),
    )
    op.create_index(
        "events_of_run",
        "events",
        ["run_id"],
        sqlite_where=sa.text("run_id IS NOT NULL"),
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )
    op.create_table(
        "runs",
        sa.Column("seq", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_runs_pipeline", "runs", ["pipeline"])
    op.create_index("ix_runs_run_id", "runs", ["run_id"])
    op.create_table(
        "quarantine",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("recorded_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("source", "digest"),
    )
    op.create_table(
        "spool_cursors",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    for statement in statements(op.get_bind().dialect.name, ("events", "runs", "quarantine")):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables with their indexes and triggers."""
    op.drop_table("spool_cursors")
    op.drop_table("quarantine")
    op.drop_table("runs")
    op.drop_table("events")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_refuse()")
