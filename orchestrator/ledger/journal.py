"""The journal: every event the ledger has received, in order of arrival. Bookings, prices and reports are
derived from it.

Events are deduplicated by `event_id`. The same id with different content is a conflict, and its line goes to
the quarantine. When `append` returns, the events are durable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orchestrator.ledger.events import (
    Correction,
    Event,
    LeaseOpened,
    SpanLine,
    SpanRecorded,
    event_from_json,
    event_to_json,
)


class Recorded(NamedTuple):
    """An event with its sequence number in the journal (1, 2, 3, ...) and its arrival time (ns, UTC,
    never decreasing).
    """

    seq: int
    recorded_ns: int
    event: Event


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not an event: its location (`file:line`), the reason, and its text."""

    source: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a spool file has been read, in bytes and lines. Only whole lines are read."""

    path: str
    offset: int
    lines: int


class Journal(Protocol):
    """Port: stores events."""

    def append(
        self,
        events: Sequence[Event | SpanLine],
        bad_lines: Sequence[BadLine] = (),
        cursor: Cursor | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        """Store new events, bad lines and the spool position atomically.

        `texts` are the JSON texts of the events, if they arrived as text. Returns the number of new events.
        """
        ...

    def events(
        self,
        runs: Collection[str] | None = None,
        after_seq: int = 0,
        known_by_ns: int | None = None,
        through_seq: int | None = None,
    ) -> Iterator[Recorded]:
        """Events in order of arrival: all of them, or those of some runs. The latter include declarations,
        the leases that the runs hold, all leases with spans for them, and all corrections. `after_seq` and
        `known_by_ns` skip earlier and later events.
        """
        ...

    def runs_of(self, name: str, known_by_ns: int | None = None) -> list[str]:
        """The run with that id, or the runs of the pipeline with that id, in order; empty if
        there is neither.

        `known_by_ns` ignores events that arrived later.
        """
        ...

    def head(self) -> int:
        """The sequence number of the last event; 0 if there is none."""
        ...

    def find(self, ids: Collection[str]) -> list[Event]:
        """The existing events with those ids."""
        ...

    def events_without_lease(self, after_seq: int, through_seq: int) -> list[Event]:
        """Events that are not about a lease (runs, purposes, corrections, stated usage) with after < seq <=
        through, in order.
        """
        ...

    def changed_leases(self, after_seq: int, through_seq: int) -> dict[str, int]:
        """The leases with events with after < seq <= through, each with the total number of its events."""
        ...

    def of_leases(self, leases: Collection[str], through_seq: int) -> Iterator[Event]:
        """The events of some leases up to `through_seq`, in any order."""
        ...

    def cursor(self, path: str) -> Cursor:
        """How far a spool file has been read."""
        ...

    def bad_lines(self) -> list[BadLine]:
        """The quarantined lines, in order of arrival."""
        ...


def lease_of(event: Event) -> str:
    """The lease an event is about; empty if none."""
    return getattr(event, "lease_id", "")


def run_of(event: Event) -> str:
    """The run an event names; empty if none. Only a lease's opening names its run."""
    return getattr(event, "run_id", "")


Arrivals = dict[str, tuple[Event | SpanLine, str]]
"""Events with their JSON, by id."""


def read(event: Event | SpanLine) -> Event:
    """Parse the event if it is still text."""
    return event_from_json(event.text) if isinstance(event, SpanLine) else event


def distinct(
    events: Sequence[Event | SpanLine], texts: Sequence[str] | None
) -> tuple[Arrivals, list[BadLine]]:
    """Index events by id. Returns them, and a bad line for each event whose id already stood for
    a different one.
    """
    arrivals: Arrivals = {}
    conflicts: list[BadLine] = []
    for event, text in zip(events, texts or [event_to_json(read(event)) for event in events], strict=True):
        seen = arrivals.setdefault(event.event_id, (event, text))
        if seen[1] is not text and read(seen[0]) != read(event):
            conflicts.append(conflict(event, text))
    return arrivals, conflicts


def without(arrivals: Arrivals, known: Mapping[str, str]) -> tuple[Arrivals, list[BadLine]]:
    """Remove the events that are already `known` (id to JSON). Returns the others, and a bad line for each
    that is known with different content.
    """
    new = {event_id: arrival for event_id, arrival in arrivals.items() if event_id not in known}
    conflicts = [
        conflict(*arrivals[event_id])
        for event_id, text in known.items()
        if text != arrivals[event_id][1] and event_from_json(text) != read(arrivals[event_id][0])
    ]
    return new, conflicts


def conflict(event: Event | SpanLine, text: str) -> BadLine:
    """The bad line for an event whose id is already taken by a different event."""
    return BadLine(f"event {event.event_id}", "event_id already exists with different content", text)


class MemoryJournal:
    """The in-memory fake of `Journal`, for simulations and tests."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._recorded: list[Recorded] = []
        self._texts: dict[str, str] = {}
        self._cursors: dict[str, Cursor] = {}
        self._bad: dict[tuple[str, str], BadLine] = {}

    def append(
        self,
        events: Sequence[Event | SpanLine],
        bad_lines: Sequence[BadLine] = (),
        cursor: Cursor | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        arrivals, doubled = distinct(events, texts)
        known = {event_id: self._texts[event_id] for event_id in arrivals if event_id in self._texts}
        new, conflicts = without(arrivals, known)
        last_ns = self._recorded[-1].recorded_ns if self._recorded else 0
        recorded_ns = max(self._now_ns(), last_ns)
        for event_id, (event, text) in new.items():
            self._texts[event_id] = text
            self._recorded.append(Recorded(len(self._recorded) + 1, recorded_ns, read(event)))
        for line in (*bad_lines, *doubled, *conflicts):
            self._bad.setdefault((line.source, line.text), line)
        if cursor is not None:
            self._cursors[cursor.path] = cursor
        return len(new)

    def events(
        self,
        runs: Collection[str] | None = None,
        after_seq: int = 0,
        known_by_ns: int | None = None,
        through_seq: int | None = None,
    ) -> Iterator[Recorded]:
        leases = self._leases_of(runs) if runs is not None else set[str]()
        for recorded in self._recorded[after_seq:through_seq]:
            if known_by_ns is not None and recorded.recorded_ns > known_by_ns:
                return
            event = recorded.event
            if (
                runs is None
                or isinstance(event, Correction)
                or run_of(event) in runs
                or lease_of(event) in leases
            ):
                yield recorded

    def _leases_of(self, runs: Collection[str]) -> set[str]:
        named = (LeaseOpened, SpanRecorded)
        return {
            lease_of(recorded.event)
            for recorded in self._recorded
            if isinstance(recorded.event, named) and recorded.event.run_id in runs
        }

    def runs_of(self, name: str, known_by_ns: int | None = None) -> list[str]:
        runs: dict[str, None] = {}
        for recorded in self.events(known_by_ns=known_by_ns):
            event = recorded.event
            run_id = run_of(event)
            if run_id and (run_id == name or getattr(event, "pipeline", "") == name):
                runs[run_id] = None
        return list(runs)

    def head(self) -> int:
        return len(self._recorded)

    def find(self, ids: Collection[str]) -> list[Event]:
        return [recorded.event for recorded in self._recorded if recorded.event.event_id in ids]

    def events_without_lease(self, after_seq: int, through_seq: int) -> list[Event]:
        return [row.event for row in self._recorded[after_seq:through_seq] if not lease_of(row.event)]

    def changed_leases(self, after_seq: int, through_seq: int) -> dict[str, int]:
        fresh = {lease_of(row.event) for row in self._recorded[after_seq:through_seq]} - {""}
        counts = dict.fromkeys(fresh, 0)
        for row in self._recorded:
            if lease_of(row.event) in fresh:
                counts[lease_of(row.event)] += 1
        return counts

    def of_leases(self, leases: Collection[str], through_seq: int) -> Iterator[Event]:
        return (row.event for row in self._recorded[:through_seq] if lease_of(row.event) in leases)

    def cursor(self, path: str) -> Cursor:
        return self._cursors.get(path, Cursor(path, 0, 0))

    def bad_lines(self) -> list[BadLine]:
        return list(self._bad.values())
