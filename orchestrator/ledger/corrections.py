"""Applies corrections: determines which events count."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from orchestrator.ledger.events import Correction, Event, event_from_json


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that does not count, and the reason: a row of the quarantine."""

    event_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corrections:
    """The ids of the corrected events, the events that replace them, and the corrections without effect.

    The id of a replacement is the id of its correction.
    """

    corrected: frozenset[str]
    replacements: tuple[Event, ...]
    rejected: tuple[Rejection, ...]


def resolve(corrections: Iterable[Correction], known: Container[str]) -> Corrections:
    """Resolve corrections. `known` contains the ids of all events, or at least of the corrected ones.

    Corrections are processed from the latest to the earliest (by `at_ns`, then `event_id`). If several
    correct the same event, the latest one counts. A correction that is itself corrected does not count, so
    the event it corrected counts again.
    """
    corrected: set[str] = set()
    replacements: list[Event] = []
    rejected: list[Rejection] = []
    for correction in sorted(corrections, key=lambda event: (event.at_ns, event.event_id), reverse=True):
        if correction.corrects not in known:
            reason = f"corrects the unknown event {correction.corrects}"
            rejected.append(Rejection(correction.event_id, reason))
        elif correction.event_id not in corrected and correction.corrects not in corrected:
            corrected.add(correction.corrects)
            if correction.replacement:
                replacement = event_from_json(correction.replacement)
                replacements.append(replace(replacement, event_id=correction.event_id))
    return Corrections(frozenset(corrected), tuple(replacements), tuple(rejected))


def apply_corrections(events: Iterable[Event]) -> tuple[list[Event], list[Rejection]]:
    """The events that count: each `event_id` once, with corrected events replaced or removed."""
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
