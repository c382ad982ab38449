"""The journal in SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from sqlalchemy import Connection, Engine, Select, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from orchestrator.ledger.errors import LedgerReadOnlyError
from orchestrator.ledger.events import Event, RunDeclared, SpanLine, event_from_json
from orchestrator.ledger.journal import (
    Arrivals,
    BadLine,
    Cursor,
    Recorded,
    distinct,
    lease_of,
    run_of,
    without,
)
from orchestrator.ledger.sql.engine import CHUNK, FETCH, reading, writing
from orchestrator.ledger.sql.schema import CURSORS, EVENTS, QUARANTINE, RUNS


class SqlJournal:
    """Stores events in SQLite or PostgreSQL. The tables must exist (`migrations.require_head`)."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self._engine, self._now_ns = engine, now_ns

    def append(
        self,
        events: Sequence[Event | SpanLine],
        bad_lines: Sequence[BadLine] = (),
        cursor: Cursor | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        arrivals, conflicts = distinct(events, texts)
        with writing(self._engine) as connection:
            seq, recorded_ns = _head(connection)
            recorded_ns = max(recorded_ns, self._now_ns())
            try:
                with connection.begin_nested():
                    _insert_events(connection, arrivals, seq, recorded_ns)
            except IntegrityError:  # some are already known; this is rare, so look them up only now
                arrivals, known_otherwise = without(arrivals, _known(connection, list(arrivals)))
                conflicts += known_otherwise
                _insert_events(connection, arrivals, seq, recorded_ns)
            self._quarantine(connection, (*bad_lines, *conflicts), recorded_ns)
            if cursor is not None:
                self._remember(connection, cursor)
        return len(arrivals)

    def _quarantine(self, connection: Connection, lines: Sequence[BadLine], recorded_ns: int) -> None:
        rows = [
            {
                "source": line.source,
                "reason": line.reason,
                "text": line.text,
                "digest": hashlib.sha256(line.text.encode()).hexdigest(),
                "recorded_ns": recorded_ns,
            }
            for line in lines
        ]
        if rows:
            connection.execute(self._insert(QUARANTINE).on_conflict_do_nothing(), rows)

    def _remember(self, connection: Connection, cursor: Cursor) -> None:
        values = {"bytes": cursor.offset, "lines": cursor.lines}
        upsert = self._insert(CURSORS).values(path=cursor.path, **values)
        connection.execute(upsert.on_conflict_do_update(index_elements=["path"], set_=values))

    def _insert(self, table: object) -> sqlite.Insert | postgresql.Insert:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table)  # type: ignore[arg-type]

    def events(
        self,
        runs: Collection[str] | None = None,
        after_seq: int = 0,
        known_by_ns: int | None = None,
        through_seq: int | None = None,
    ) -> Iterator[Recorded]:
        if known_by_ns is not None:
            self._wait_for_appends()
        query = select(EVENTS.c.seq, EVENTS.c.recorded_ns, EVENTS.c.payload).where(EVENTS.c.seq > after_seq)
        if runs is not None:
            query = query.where(
                or_(
                    EVENTS.c.run_id.in_(list(runs)),
                    EVENTS.c.lease_id.in_(_leases_of(runs)),
                    and_(EVENTS.c.lease_id.is_(None), EVENTS.c.type == "correction"),
                )
            )
        if through_seq is not None:
            query = query.where(EVENTS.c.seq <= through_seq)
        if known_by_ns is not None:
            query = query.where(EVENTS.c.recorded_ns <= known_by_ns)
        with reading(self._engine) as connection:
            rows = connection.execution_options(yield_per=FETCH).execute(query.order_by(EVENTS.c.seq))
            for seq, recorded_ns, payload in rows:
                yield Recorded(seq, recorded_ns, event_from_json(payload))

    def runs_of(self, name: str, known_by_ns: int | None = None) -> list[str]:
        declared = select(RUNS.c.run_id).where(or_(RUNS.c.run_id == name, RUNS.c.pipeline == name))
        mentioned = select(func.count()).where(EVENTS.c.run_id == name)
        if known_by_ns is not None:
            self._wait_for_appends()
            known = EVENTS.c.recorded_ns <= known_by_ns
            declared = declared.join(EVENTS, EVENTS.c.seq == RUNS.c.seq).where(known)
            mentioned = mentioned.where(known)
        with reading(self._engine) as connection:
            runs = dict.fromkeys(connection.scalars(declared.order_by(RUNS.c.seq)))
            if not runs and connection.scalar(mentioned):
                runs = {name: None}
        return list(runs)

    def _wait_for_appends(self) -> None:
        """Wait for an append in progress: its time may be before ours, although it is not yet visible.

        A store that cannot be written has none.
        """
        with suppress(LedgerReadOnlyError), writing(self._engine):
            pass

    def head(self) -> int:
        with reading(self._engine) as connection:
            return _head(connection)[0]

    def find(self, ids: Collection[str]) -> list[Event]:
        with reading(self._engine) as connection:
            return [event_from_json(text) for text in _known(connection, sorted(ids)).values()]

    def events_without_lease(self, after_seq: int, through_seq: int) -> list[Event]:
        query = select(EVENTS.c.payload).where(EVENTS.c.lease_id.is_(None))
        query = query.where(EVENTS.c.seq > after_seq, EVENTS.c.seq <= through_seq).order_by(EVENTS.c.seq)
        with reading(self._engine) as connection:
            return [event_from_json(text) for text in connection.scalars(query)]

    def changed_leases(self, after_seq: int, through_seq: int) -> dict[str, int]:
        counts = select(EVENTS.c.lease_id, func.count().label("events")).where(EVENTS.c.lease_id.is_not(None))
        if after_seq:
            fresh = select(EVENTS.c.lease_id).where(EVENTS.c.seq > after_seq, EVENTS.c.seq <= through_seq)
            counts = counts.where(EVENTS.c.lease_id.in_(fresh.where(EVENTS.c.lease_id.is_not(None))))
        with reading(self._engine) as connection:
            rows = connection.execute(counts.group_by(EVENTS.c.lease_id))
            return {row.lease_id: row.events for row in rows}

    def of_leases(self, leases: Collection[str], through_seq: int) -> Iterator[Event]:
        names = sorted(leases)
        with reading(self._engine) as connection:
            for start in range(0, len(names), CHUNK):
                query = select(EVENTS.c.payload).where(EVENTS.c.lease_id.in_(names[start : start + CHUNK]))
                query = query.where(EVENTS.c.seq <= through_seq)
                rows = connection.execution_options(yield_per=FETCH).execute(query)
                for partition in rows.scalars().partitions():
                    yield from map(event_from_json, partition)

    def cursor(self, path: str) -> Cursor:
        with reading(self._engine) as connection:
            row = connection.execute(select(CURSORS).where(CURSORS.c.path == path)).first()
        return Cursor(path, row.bytes, row.lines) if row else Cursor(path, 0, 0)

    def bad_lines(self) -> list[BadLine]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(QUARANTINE).order_by(QUARANTINE.c.id)).all()
        return [BadLine(row.source, row.reason, row.text) for row in rows]


def _head(connection: Connection) -> tuple[int, int]:
    """Sequence number and arrival time of the last event."""
    query = select(EVENTS.c.seq, EVENTS.c.recorded_ns).order_by(EVENTS.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (row.seq, row.recorded_ns) if row else (0, 0)


def _insert_events(connection: Connection, arrivals: Arrivals, seq: int, recorded_ns: int) -> None:
    """Insert events with the numbers after `seq`. Raises IntegrityError if one is already known."""
    if not arrivals:
        return
    rows = [
        (number, event_id, recorded_ns, event.type, event.run_id or None, event.lease_id, text)
        if isinstance(event, SpanLine)
        else (number, event_id, recorded_ns, event.type, run_of(event) or None, lease_of(event) or None, text)
        for number, (event_id, (event, text)) in enumerate(arrivals.items(), seq + 1)
    ]
    # Bypass SQLAlchemy's parameter handling, which takes as long as the database itself.
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    connection.exec_driver_sql(f"INSERT INTO events VALUES ({', '.join([mark] * len(rows[0]))})", rows)
    declared = [
        {"seq": number, "run_id": event.run_id, "pipeline": event.pipeline}
        for number, (event, _) in enumerate(arrivals.values(), seq + 1)
        if isinstance(event, RunDeclared)
    ]
    if declared:
        connection.execute(RUNS.insert(), declared)


def _known(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        query = select(EVENTS.c.event_id, EVENTS.c.payload).where(EVENTS.c.event_id.in_(chunk))
        known.update((row.event_id, row.payload) for row in connection.execute(query))
    return known


def _leases_of(runs: Collection[str]) -> Select[tuple[str]]:
    held = EVENTS.alias("held")
    return select(held.c.lease_id).where(held.c.run_id.in_(list(runs)), held.c.lease_id.is_not(None))
