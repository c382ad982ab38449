"""The tables. They are created by the migrations in `migrations/`; a test compares the two.

All but `spool_cursors` are append-only: triggers reject UPDATE, DELETE and TRUNCATE.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

from orchestrator.ledger.sql.types import BigInt

METADATA = MetaData()

SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")
"""A counting primary key. SQLite only makes INTEGER an alias of its row id."""

EVENTS = Table(
    "events",
    METADATA,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("recorded_ns", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("run_id", Text, nullable=True),
    Column("lease_id", Text, nullable=True),
    Column("payload", Text, nullable=False),
)
Index(
    "events_of_run",
    EVENTS.c.run_id,
    sqlite_where=EVENTS.c.run_id.is_not(None),
    postgresql_where=EVENTS.c.run_id.is_not(None),
)
Index(
    "events_of_lease",
    EVENTS.c.lease_id,
    sqlite_where=EVENTS.c.lease_id.is_not(None),
    postgresql_where=EVENTS.c.lease_id.is_not(None),
)
Index(
    "events_of_no_lease",
    EVENTS.c.type,
    EVENTS.c.seq,
    sqlite_where=EVENTS.c.lease_id.is_(None),
    postgresql_where=EVENTS.c.lease_id.is_(None),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False, index=True),
    Column("pipeline", Text, nullable=False, index=True),
)
"""Runs and their pipelines, one row per declaration, for fast lookups by name."""

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("recorded_ns", BigInteger, nullable=False),
    UniqueConstraint("source", "digest"),
)

CURSORS = Table(
    "spool_cursors",
    METADATA,
    Column("path", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
)

PRICE_BOOKS = Table(
    "price_books",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=True),
    Column("recorded_ns", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, index=True),
    Column("content", Text, nullable=False),
)
"""The adopted price books, as canonical JSON.

The newest one that prices a SKU on a day is used.
"""

POSTINGS = Table(
    "postings",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=False),
    Column("period", Text, nullable=False, index=True),
    Column("about", Text, nullable=False, index=True),
    Column("day", Integer, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lease_id", Text, nullable=False, index=True),
    Column("node", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("sku", Text, nullable=False),
    Column("region", Text, nullable=False),
    Column("commitment", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("activity", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("cost_centre", Text, nullable=False),
    Column("team", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("ns", BigInt, nullable=False),
    Column("unit_price", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
"""The lines of closed months in order of posting. `period` is the month they were posted in, `about` the
month they are about (an earlier one for an adjustment). `unit_price` is the price of an accelerator-hour as
an exact fraction.
"""

CLOSES = Table(
    "closes",
    METADATA,
    Column("period", Text, primary_key=True),
    Column("closed_ns", BigInteger, nullable=False),
    Column("through_seq", BigInteger, nullable=False),
    Column("last_posting", BigInteger, nullable=False),
    Column("postings", BigInteger, nullable=False),
    Column("prices", BigInteger, nullable=False),
    Column("head", Text, nullable=False),
)
"""The closed months.

Each includes the events up to `through_seq` and the price books up to id `prices`. `head` is the head of
the hash chain.
"""

BUDGETS = Table(
    "budgets",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, index=True),
    Column("scope", Text, nullable=False),
    Column("starts", Integer, nullable=False),
    Column("ends", Integer, nullable=False),
    Column("limit_micros", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("warn_at", Text, nullable=False),
    Column("recorded_ns", BigInteger, nullable=False),
)
"""Budget definitions; the latest row of a name counts. Money is in millionths of the currency."""

TRANSFERS = Table(
    "transfers",
    METADATA,
    Column("id", SEQUENCE, primary_key=True, autoincrement=False),
    Column("budget", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reservation", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("micros", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("pending_after", BigInteger, nullable=False),
    Column("settled_after", BigInteger, nullable=False),
    UniqueConstraint("reservation", "budget", "kind"),
)
"""Two-phase transfers: `reserve`, then one of `settle`, `void`, `expire`.

Each row has the balance after it.
"""
Index("transfers_of_budget", TRANSFERS.c.budget, TRANSFERS.c.id)

APPEND_ONLY = ("events", "runs", "quarantine", "price_books", "postings", "closes", "budgets", "transfers")
