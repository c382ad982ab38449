"""Budgets in SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, select

from orchestrator.ledger.budgets import ENDINGS, Budget, Transfer, TransferKind, from_micros, to_micros
from orchestrator.ledger.sql.engine import reading, writing
from orchestrator.ledger.sql.schema import BUDGETS, TRANSFERS

_COLUMNS = [TRANSFERS.c[name] for name in Transfer.__slots__]


class SqlBudgets:
    """Stores budgets in SQLite or PostgreSQL. Transactions exclude each other across all processes."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self._engine, self._now_ns = engine, now_ns

    def define(self, budget: Budget) -> None:
        row = {
            "name": budget.name,
            "scope": json.dumps(dict(budget.scope), sort_keys=True),
            "starts": budget.first_day,
            "ends": budget.end_day,
            "limit_micros": to_micros(budget.limit, ROUND_HALF_EVEN),
            "currency": budget.currency,
            "warn_at": json.dumps([str(share) for share in budget.warn_at]),
            "recorded_ns": self._now_ns(),
        }
        with writing(self._engine) as connection:
            connection.execute(BUDGETS.insert(), row)

    def budgets(self) -> list[Budget]:
        newest = select(func.max(BUDGETS.c.id)).group_by(BUDGETS.c.name)
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(BUDGETS).where(BUDGETS.c.id.in_(newest)).order_by(BUDGETS.c.name)
            )
            return [_budget(row) for row in rows]

    @contextmanager
    def transaction(self) -> Generator[_Book]:
        with writing(self._engine) as connection:
            yield _Book(connection)


class _Book:
    """The accounts within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def budget(self, name: str) -> Budget | None:
        query = select(BUDGETS).where(BUDGETS.c.name == name).order_by(BUDGETS.c.id.desc()).limit(1)
        row = self._connection.execute(query).first()
        return _budget(row) if row else None

    def last(self, name: str) -> Transfer | None:
        query = select(*_COLUMNS).where(TRANSFERS.c.budget == name).order_by(TRANSFERS.c.id.desc()).limit(1)
        row = self._connection.execute(query).first()
        return _transfer(row) if row else None

    def of_reservation(self, reservation: str) -> list[Transfer]:
        query = select(*_COLUMNS).where(TRANSFERS.c.reservation == reservation).order_by(TRANSFERS.c.id)
        return [_transfer(row) for row in self._connection.execute(query)]

    def of_run(self, run_id: str) -> list[Transfer]:
        query = select(*_COLUMNS).where(TRANSFERS.c.run_id == run_id).order_by(TRANSFERS.c.id)
        return [_transfer(row) for row in self._connection.execute(query)]

    def overdue(self, name: str, now_ns: int) -> list[Transfer]:
        ending = TRANSFERS.alias("ending")
        same = and_(ending.c.reservation == TRANSFERS.c.reservation, ending.c.budget == TRANSFERS.c.budget)
        ended = select(ending.c.id).where(same, ending.c.kind.in_([kind.value for kind in ENDINGS]))
        query = select(*_COLUMNS).where(
            TRANSFERS.c.budget == name,
            TRANSFERS.c.kind == TransferKind.RESERVE.value,
            TRANSFERS.c.expires_ns <= now_ns,
            ~ended.exists(),
        )
        return [_transfer(row) for row in self._connection.execute(query.order_by(TRANSFERS.c.id))]

    def append(self, transfer: Transfer) -> None:
        last = self._connection.scalar(select(func.max(TRANSFERS.c.id))) or 0
        row = {name: getattr(transfer, name) for name in Transfer.__slots__}
        self._connection.execute(TRANSFERS.insert(), {**row, "kind": transfer.kind.value, "id": last + 1})


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        row.name,
        json.loads(row.scope),
        row.starts,
        row.ends,
        from_micros(row.limit_micros),
        row.currency,
        tuple(Decimal(share) for share in json.loads(row.warn_at)),
    )


def _transfer(row: Row[Any]) -> Transfer:
    budget, kind, *rest = tuple(row)
    return Transfer(budget, TransferKind(kind), *rest)
