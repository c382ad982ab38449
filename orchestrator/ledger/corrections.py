"""Which events count, after corrections."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from orchestrator.ledger.events import Correction, Event, event_from_json


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that does not count, and why: a row of the quarantine."""

    event_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corrections:
    """The ids of the events that do not count, the events that count in their place, and useless corrections.

    A replacement is known by its correction's id.
    """

    corrected: frozenset[str]
    replacements: tuple[Event, ...]
    rejected: tuple[Rejection, ...]


def resolve(corrections: Iterable[Correction], known: Container[str]) -> Corrections:
    """What corrections come to. `known` are the ids of all events (or at least of those that are corrected).

    They are taken from the latest to the earliest (by `at_ns`, then `event_id`). Of several corrections of
    one event the latest counts. A correction that is itself corrected does not count, so that the event it
    was about counts again.
    """
    corrected: set[str] = set()
    replacements: list[Event] = []
    rejected: list[Rejection] = []
    for correction in sorted(corrections, key=lambda event: (event.at_ns, event.event_id), reverse=True):
        if correction.corrects not in known:
            reason = f"corrects {correction.corrects}, which is not known"
            rejected.append(Rejection(correction.event_id, reason))
        elif correction.event_id not in corrected and correction.corrects not in corrected:
            corrected.add(correction.corrects)
            if correction.replacement:
                replacement = event_from_json(correction.replacement)
                replacements.append(replace(replacement, event_id=correction.event_id))
    return Corrections(frozenset(corrected), tuple(replacements), tuple(rejected))


def effective(events: Iterable[Event]) -> tuple[list[Event], list[Rejection]]:
    """The events that count: duplicates by `event_id` once, corrected ones replaced or left out."""
    by_id: dict[str, Event] = {}
    for event in events:
        by_id.setdefault(event.event_id, event)
    found = resolve((event for event in by_id.values() if isinstance(event, Correction)), by_id)
    counted = [
        event
        for event in by_id.values()
        if not isinstance(event, Correction) and event.event_id not in found.corrected
    ]
    return [*found.replacements, *counted], list(found.rejected)
