"""The tables. The migrations in `migrations/` make them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

METADATA = MetaData()
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")
"""A primary key that counts: SQLite makes only INTEGER an alias of its row id."""

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
    "events_corrections",
    EVENTS.c.seq,
    sqlite_where=EVENTS.c.type == "correction",
    postgresql_where=EVENTS.c.type == "correction",
)

RUNS = Table(
    "runs",
    METADATA,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False, index=True),
    Column("pipeline", Text, nullable=False, index=True),
)
"""Which runs there are, and of which pipeline: one row for each declaration, kept with its event for quick
look-up.
"""

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
