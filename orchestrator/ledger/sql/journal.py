"""The journal in SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence

from sqlalchemy import Connection, Engine, Select, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.ledger.events import Event, RunDeclared, event_from_json
from orchestrator.ledger.journal import BadLine, Cursor, Recorded, lease_of, run_of, sort_out
from orchestrator.ledger.sql.engine import CHUNK, FETCH, reading, writing
from orchestrator.ledger.sql.schema import CURSORS, EVENTS, QUARANTINE, RUNS


class SqlJournal:
    """The journal in SQLite or PostgreSQL. The tables must exist (`migrations.upgrade`)."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self._engine, self._now_ns = engine, now_ns

    def append(
        self, events: Sequence[Event], bad_lines: Sequence[BadLine] = (), cursor: Cursor | None = None
    ) -> int:
        """Take the events that are new, the lines that are none, and the place in the spool, all or nothing.

        Returns how many were new.
        """
        with writing(self._engine) as connection:
            new, conflicts = sort_out(events, self._known(connection, events))
            seq, recorded_ns = self._head(connection)
            recorded_ns = max(recorded_ns, self._now_ns())
            rows = [
                {
                    "seq": seq + place,
                    "event_id": event_id,
                    "recorded_ns": recorded_ns,
                    "type": event.type,
                    "run_id": run_of(event) or None,
                    "lease_id": lease_of(event) or None,
                    "payload": payload,
                }
                for place, (event_id, (event, payload)) in enumerate(new.items(), 1)
            ]
            if rows:
                connection.execute(EVENTS.insert(), rows)
            declared = [
                {"seq": seq + place, "run_id": event.run_id, "pipeline": event.pipeline}
                for place, (event, _) in enumerate(new.values(), 1)
                if isinstance(event, RunDeclared)
            ]
            if declared:
                connection.execute(RUNS.insert(), declared)
            self._quarantine(connection, (*bad_lines, *conflicts), recorded_ns)
            if cursor is not None:
                self._remember(connection, cursor)
            return len(rows)

    def _known(self, connection: Connection, events: Sequence[Event]) -> dict[str, str]:
        ids = [event.event_id for event in events]
        known: dict[str, str] = {}
        for start in range(0, len(ids), CHUNK):
            query = select(EVENTS.c.event_id, EVENTS.c.payload).where(
                EVENTS.c.event_id.in_(ids[start : start + CHUNK])
            )
            known.update((row.event_id, row.payload) for row in connection.execute(query))
        return known

    def _head(self, connection: Connection) -> tuple[int, int]:
        row = connection.execute(
            select(EVENTS.c.seq, EVENTS.c.recorded_ns).order_by(EVENTS.c.seq.desc()).limit(1)
        ).first()
        return (row.seq, row.recorded_ns) if row else (0, 0)

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
    ) -> Iterator[Recorded]:
        """Events in the order of arrival."""
        if known_by_ns is not None:
            with writing(self._engine):
                pass  # whoever is appending may have taken its moment before ours: wait until it is visible
        query = select(EVENTS.c.seq, EVENTS.c.recorded_ns, EVENTS.c.payload).where(EVENTS.c.seq > after_seq)
        if runs is not None:
            query = query.where(
                or_(
                    EVENTS.c.run_id.in_(list(runs)),
                    EVENTS.c.lease_id.in_(_leases_of(runs)),
                    EVENTS.c.type == "correction",
                )
            )
        if known_by_ns is not None:
            query = query.where(EVENTS.c.recorded_ns <= known_by_ns)
        with reading(self._engine) as connection:
            rows = connection.execution_options(yield_per=FETCH).execute(query.order_by(EVENTS.c.seq))
            for row in rows:
                yield Recorded(row.seq, row.recorded_ns, event_from_json(row.payload))

    def runs_of(self, name: str) -> list[str]:
        """The run of that id and the runs of the pipeline of that id."""
        declared = select(RUNS.c.run_id).where(or_(RUNS.c.run_id == name, RUNS.c.pipeline == name))
        with reading(self._engine) as connection:
            runs = dict.fromkeys(connection.scalars(declared.order_by(RUNS.c.seq)))
            if not runs and connection.scalar(select(func.count()).where(EVENTS.c.run_id == name)):
                runs = {name: None}
        return list(runs)

    def cursor(self, path: str) -> Cursor:
        """How far a spool file was read."""
        with reading(self._engine) as connection:
            row = connection.execute(select(CURSORS).where(CURSORS.c.path == path)).first()
        return Cursor(path, row.bytes, row.lines) if row else Cursor(path, 0, 0)

    def bad_lines(self) -> list[BadLine]:
        """The quarantine of lines."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(QUARANTINE).order_by(QUARANTINE.c.id)).all()
        return [BadLine(row.source, row.reason, row.text) for row in rows]


def _leases_of(runs: Collection[str]) -> Select[tuple[str]]:
    held = EVENTS.alias("held")
    return select(held.c.lease_id).where(held.c.run_id.in_(list(runs)), held.c.lease_id.is_not(None))
