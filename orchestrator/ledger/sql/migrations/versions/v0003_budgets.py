"""Budgets and their two-phase transfers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.ledger.sql.append_only import statements

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables and their triggers."""
    op.create_table(
        "budgets",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("starts", sa.Integer(), nullable=False),
        sa.Column("ends", sa.Integer(), nullable=False),
        sa.Column("limit_micros", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("warn_at", sa.Text(), nullable=False),
        sa.Column("recorded_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_budgets_name", "budgets", ["name"])
    op.create_table(
        "transfers",
        sa.Column("id", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reservation", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("pending_after", sa.BigInteger(), nullable=False),
        sa.Column("settled_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("reservation", "budget", "kind"),
    )
    op.create_index("transfers_of_budget", "transfers", ["budget", "id"])
    for statement in statements(op.get_bind().dialect.name, ("budgets", "transfers")):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables with their indexes and triggers."""
    op.drop_table("transfers")
    op.drop_table("budgets")
