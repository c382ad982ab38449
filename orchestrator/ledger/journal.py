"""The journal: every event the ledger was told, in the order of arrival, for ever. What is booked, priced and
reported derives from it.

A journal takes each event once, by `event_id`. The same id with other content is no duplicate but a conflict,
and goes to the quarantine with its line. What `append` returned from is durable.
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
    """An event, its place in the journal (1, 2, 3, ...) and when the journal took it (ns, UTC, never going
    back).
    """

    seq: int
    recorded_ns: int
    event: Event


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no event: where it stood (`file:line`), what was wrong with it, and its text."""

    source: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a spool file was read: bytes and lines, whole lines only."""

    path: str
    offset: int
    lines: int


class Journal(Protocol):
    """Where events are kept."""

    def append(
        self,
        events: Sequence[Event | SpanLine],
        bad_lines: Sequence[BadLine] = (),
        cursor: Cursor | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        """Take the events that are new, the lines that are none, and the place in the spool, all or nothing.

        `texts` are the events' JSON as it arrived, if it did as text. Returns how many were new.
        """
        ...

    def events(
        self,
        runs: Collection[str] | None = None,
        after_seq: int = 0,
        known_by_ns: int | None = None,
        through_seq: int | None = None,
    ) -> Iterator[Recorded]:
        """Events in the order of arrival: all, or those of some runs (declarations, leases held, and leases
        with spans for them, whole; corrections of any run are among them). `after_seq` leaves out what came
        before, `known_by_ns` what came after.
        """
        ...

    def runs_of(self, name: str, known_by_ns: int | None = None) -> list[str]:
        """The run of that id and the runs of the pipeline of that id, in order; empty if there is neither.

        `known_by_ns` leaves out what was heard of later.
        """
        ...

    def head(self) -> int:
        """The place of the last event; 0 if there is none."""
        ...

    def find(self, ids: Collection[str]) -> list[Event]:
        """The events of those ids that there are."""
        ...

    def unleased(self, after_seq: int, through_seq: int) -> list[Event]:
        """The events about no lease (runs, purposes, corrections, stated usage) with after < seq <= through,
        in order.
        """
        ...

    def news(self, after_seq: int, through_seq: int) -> dict[str, int]:
        """The leases with events after < seq <= through, each with the number of all its events."""
        ...

    def of_leases(self, leases: Collection[str], through_seq: int) -> Iterator[Event]:
        """The events of some leases up to `through_seq`, in any order."""
        ...

    def cursor(self, path: str) -> Cursor:
        """How far a spool file was read."""
        ...

    def bad_lines(self) -> list[BadLine]:
        """The quarantine of lines, in the order of arrival."""
        ...


def lease_of(event: Event) -> str:
    """The lease that an event is about; empty if none."""
    return getattr(event, "lease_id", "")


def run_of(event: Event) -> str:
    """The run that an event names; empty if none (a lease's run is named by its opening)."""
    return getattr(event, "run_id", "")


Arrivals = dict[str, tuple[Event | SpanLine, str]]
"""Events with their JSON, by id."""


def read(event: Event | SpanLine) -> Event:
    """The event itself."""
    return event_from_json(event.text) if isinstance(event, SpanLine) else event


def distinct(
    events: Sequence[Event | SpanLine], texts: Sequence[str] | None
) -> tuple[Arrivals, list[BadLine]]:
    """The events by id, and a bad line for each whose id stood for another event before."""
    arrivals: Arrivals = {}
    conflicts: list[BadLine] = []
    for event, text in zip(events, texts or [event_to_json(read(event)) for event in events], strict=True):
        seen = arrivals.setdefault(event.event_id, (event, text))
        if seen[1] is not text and read(seen[0]) != read(event):
            conflicts.append(conflict(event, text))
    return arrivals, conflicts


def without(arrivals: Arrivals, known: Mapping[str, str]) -> tuple[Arrivals, list[BadLine]]:
    """The events that are not `known` (id to JSON), and a bad line for each that is, with other content."""
    new = {event_id: arrival for event_id, arrival in arrivals.items() if event_id not in known}
    conflicts = [
        conflict(*arrivals[event_id])
        for event_id, text in known.items()
        if text != arrivals[event_id][1] and event_from_json(text) != read(arrivals[event_id][0])
    ]
    return new, conflicts


def conflict(event: Event | SpanLine, text: str) -> BadLine:
    """The bad line of an event whose id stands for another one."""
    return BadLine(f"event {event.event_id}", "event_id was used before, with other content", text)


class MemoryJournal:
    """A journal in lists: the fake of the port, for simulations and tests."""

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
        """Take the events that are new, the lines that are none, and the place in the spool.

        Returns how many were new.
        """
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
        """Events in the order of arrival."""
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
        """The run of that id and the runs of the pipeline of that id."""
        runs: dict[str, None] = {}
        for recorded in self.events(known_by_ns=known_by_ns):
            event = recorded.event
            run_id = run_of(event)
            if run_id and (run_id == name or getattr(event, "pipeline", "") == name):
                runs[run_id] = None
        return list(runs)

    def head(self) -> int:
        """The place of the last event."""
        return len(self._recorded)

    def find(self, ids: Collection[str]) -> list[Event]:
        """The events of those ids that there are."""
        return [recorded.event for recorded in self._recorded if recorded.event.event_id in ids]

    def unleased(self, after_seq: int, through_seq: int) -> list[Event]:
        """The events about no lease with after < seq <= through."""
        return [row.event for row in self._recorded[after_seq:through_seq] if not lease_of(row.event)]

    def news(self, after_seq: int, through_seq: int) -> dict[str, int]:
        """The leases with events after < seq <= through, each with the number of all its events."""
        fresh = {lease_of(row.event) for row in self._recorded[after_seq:through_seq]} - {""}
        counts = dict.fromkeys(fresh, 0)
        for row in self._recorded:
            if lease_of(row.event) in fresh:
                counts[lease_of(row.event)] += 1
        return counts

    def of_leases(self, leases: Collection[str], through_seq: int) -> Iterator[Event]:
        """The events of some leases up to `through_seq`."""
        return (row.event for row in self._recorded[:through_seq] if lease_of(row.event) in leases)

    def cursor(self, path: str) -> Cursor:
        """How far a spool file was read."""
        return self._cursors.get(path, Cursor(path, 0, 0))

    def bad_lines(self) -> list[BadLine]:
        """The quarantine of lines."""
        return list(self._bad.values())
