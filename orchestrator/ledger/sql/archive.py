"""The archive in SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from orchestrator.ledger.archive import AdoptedBook, Close, Posting, digest_of, require_next
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.prices import PriceBook
from orchestrator.ledger.sql.engine import CHUNK, FETCH, reading, writing
from orchestrator.ledger.sql.schema import CLOSES, POSTINGS, PRICE_BOOKS

_KEY_COLUMNS = [POSTINGS.c[name] for name in LineKey._fields]


class SqlArchive:
    """Stores price books and closed months in SQLite or PostgreSQL.

    The tables must exist (`migrations.require_head`).
    """

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self._engine, self._now_ns = engine, now_ns

    def adopt(self, book: PriceBook) -> bool:
        digest = digest_of(book)
        newest = (
            select(PRICE_BOOKS.c.digest)
            .where(PRICE_BOOKS.c.name == book.name)
            .order_by(PRICE_BOOKS.c.id.desc())
        )
        with reading(self._engine) as connection:
            if connection.scalar(newest.limit(1)) == digest:
                return False
        with writing(self._engine) as connection:
            if connection.scalar(newest.limit(1)) == digest:
                return False
            row = {
                "recorded_ns": self._now_ns(),
                "name": book.name,
                "digest": digest,
                "content": book.to_json(),
            }
            connection.execute(PRICE_BOOKS.insert(), row)
        return True

    def price_books(self, known_by_ns: int | None = None) -> list[AdoptedBook]:
        query = select(PRICE_BOOKS).order_by(PRICE_BOOKS.c.id.desc())
        if known_by_ns is not None:
            query = query.where(PRICE_BOOKS.c.recorded_ns <= known_by_ns)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            AdoptedBook(row.id, row.recorded_ns, row.digest, PriceBook.parse(json.loads(row.content)))
            for row in rows
        ]

    def closes(self, known_by_ns: int | None = None) -> list[Close]:
        with reading(self._engine) as connection:
            return _closes(connection, known_by_ns)

    def postings(self, last: int, leases: Collection[str] | None = None) -> Iterator[Posting]:
        query = select(POSTINGS.c.id, POSTINGS.c.period, POSTINGS.c.ns, POSTINGS.c.hash, *_KEY_COLUMNS)
        query = query.where(POSTINGS.c.id <= last).order_by(POSTINGS.c.id)
        with reading(self._engine) as connection:
            if leases is None:
                for row in connection.execution_options(yield_per=FETCH).execute(query):
                    yield _posting(row)
                return
            found: list[Posting] = []
            names = sorted(leases)
            for start in range(0, len(names), CHUNK):
                of_leases = query.where(POSTINGS.c.lease_id.in_(names[start : start + CHUNK]))
                found.extend(_posting(row) for row in connection.execute(of_leases))
        yield from sorted(found)

    def post(self, close: Close, postings: Sequence[Posting]) -> None:
        with writing(self._engine) as connection:
            require_next(close, _closes(connection, None))
            rows = [
                {
                    "id": posting.number,
                    "period": posting.period,
                    "about": posting.key.month,
                    "ns": posting.ns,
                    "hash": posting.hash,
                    **posting.key._asdict(),
                }
                for posting in postings
            ]
            if rows:
                connection.execute(POSTINGS.insert(), rows)
            connection.execute(
                CLOSES.insert(),
                {
                    "period": close.period,
                    "closed_ns": close.closed_ns,
                    "through_seq": close.through_seq,
                    "prices": close.prices,
                    "postings": close.postings,
                    "last_posting": close.last_posting,
                    "head": close.head,
                },
            )


def _closes(connection: Connection, known_by_ns: int | None) -> list[Close]:
    query = select(CLOSES).order_by(CLOSES.c.period)
    if known_by_ns is not None:
        query = query.where(CLOSES.c.closed_ns <= known_by_ns)
    return [
        Close(
            row.period, row.closed_ns, row.through_seq, row.prices, row.postings, row.last_posting, row.head
        )
        for row in connection.execute(query)
    ]


def _posting(row: Row[Any]) -> Posting:
    number, period, ns, digest, *key = tuple(row)
    return Posting(number, period, LineKey(*key), ns, digest)
