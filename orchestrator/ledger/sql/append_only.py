"""Triggers that reject changes and deletions of rows, so that the database itself keeps the
ledger append-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

REFUSAL = "the ledger is append-only"


def statements(dialect: str, tables: Iterable[str]) -> Iterator[str]:
    """SQL statements that protect `tables`, for `sqlite` or `postgresql`."""
    if dialect == "postgresql":
        yield (
            "CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}: % of %', TG_OP, TG_TABLE_NAME; END $$"
        )
    for table in tables:
        if dialect == "postgresql":
            yield (
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()"
            )
            continue
        for operation in ("UPDATE", "DELETE"):
            yield (
                f"CREATE TRIGGER {table}_no_{operation.lower()} BEFORE {operation} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}: {operation} of {table}'); END"
            )
