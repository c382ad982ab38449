"""Derives lines from events in plain Python. This is the reference implementation of booking, but too slow
for millions of spans, for which the mart exists.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.ledger.booking import BookingPolicy, book
from orchestrator.ledger.corrections import apply_corrections
from orchestrator.ledger.entries import lease_entries, stated_entries
from orchestrator.ledger.events import Event, UsageStated
from orchestrator.ledger.labels import labels_of
from orchestrator.ledger.lines import Lines, to_lines


def lines_from_events(events: Iterable[Event], as_of_ns: int, policy: BookingPolicy) -> Lines:
    """All lines of `events` as of `as_of_ns`."""
    counted, _ = apply_corrections(events)
    booked, _ = book(counted, as_of_ns, policy)
    stated = [event for event in counted if isinstance(event, UsageStated)]
    return to_lines([*lease_entries(booked), *stated_entries(stated)], labels_of(counted))
