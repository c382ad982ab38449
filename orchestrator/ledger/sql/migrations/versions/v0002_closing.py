"""Price books, and the postings and closes of months."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.ledger.sql.append_only import statements
from orchestrator.ledger.sql.types import BigInt

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables and their triggers."""
    op.create_table(
        "price_books",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("recorded_ns", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_price_books_digest", "price_books", ["digest"])
    op.create_table(
        "postings",
        sa.Column("id", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("commitment", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("activity", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("cost_centre", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("ns", BigInt(), nullable=False),
        sa.Column("unit_price", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_postings_about", "postings", ["about"])
    op.create_index("ix_postings_lease_id", "postings", ["lease_id"])
    op.create_index("ix_postings_period", "postings", ["period"])
    op.create_table(
        "closes",
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("closed_ns", sa.BigInteger(), nullable=False),
        sa.Column("through_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_posting", sa.BigInteger(), nullable=False),
        sa.Column("postings", sa.BigInteger(), nullable=False),
        sa.Column("prices", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("period"),
    )
    for statement in statements(op.get_bind().dialect.name, ("price_books", "postings", "closes")):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables with their indexes and triggers."""
    op.drop_table("closes")
    op.drop_table("postings")
    op.drop_table("price_books")
