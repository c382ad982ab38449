"""Lines: entries of the same kind added up, with their run's labels.

What is priced, reported and, when a month closes, posted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.ledger.calendar import month_of
from orchestrator.ledger.entries import Entry
from orchestrator.ledger.labels import UNLABELLED, Labels


class LineKey(NamedTuple):
    """What makes two entries the same kind.

    `unit_price` and `currency` are empty where the price book decides.
    """

    day: int
    run_id: str
    attempt: int
    lease_id: str
    node: str
    resource: str
    sku: str
    region: str
    commitment: str
    role: str
    activity: str
    organisation: str
    cost_centre: str
    team: str
    project: str
    pipeline: str
    job: str
    stage: str
    purpose: str
    unit_price: str
    currency: str

    @property
    def month(self) -> str:
        """The month that its day falls in."""
        return month_of(self.day)


Lines = dict[LineKey, int]
"""Accelerator-nanoseconds by kind. Negative where something is taken back."""

DIMENSIONS = (
    *(
        "organisation",
        "cost_centre",
        "team",
        "project",
        "pipeline",
        "job",
        "run",
        "attempt",
        "stage",
        "purpose",
    ),
    *(
        "role",
        "activity",
        "resource",
        "sku",
        "node",
        "region",
        "commitment",
        "lease",
        "day",
        "month",
        "posted",
        "kind",
    ),
)
"""What a report can group by. `month` and `day` are when the usage was, `posted` is the month that it counts
in (later for an adjustment), `kind` is usage or adjustment.
"""


def to_lines(entries: Iterable[Entry], labels: Mapping[str, Labels]) -> Lines:
    """Add up entries."""
    lines: Lines = {}
    for entry in entries:
        key = LineKey(
            entry.day,
            entry.run_id,
            entry.attempt,
            entry.lease_id,
            entry.node,
            entry.resource,
            entry.sku,
            entry.region,
            entry.commitment,
            entry.role,
            entry.activity,
            *labels.get(entry.run_id, UNLABELLED),
            entry.unit_price,
            entry.currency,
        )
        lines[key] = lines.get(key, 0) + entry.ns
    return lines


PRICED_BY = frozenset({"day", "resource", "sku", "region", "commitment", "unit_price", "currency"})
"""Fields of a line that its price depends on: never left out."""


def left_out(keep: Collection[str]) -> dict[str, Any]:
    """The empty values of the fields that are neither in `keep` nor in PRICED_BY."""
    return {
        name: 0 if name == "attempt" else ""
        for name in LineKey._fields
        if name not in keep and name not in PRICED_BY
    }


def coarse(lines: Lines, keep: Collection[str]) -> Lines:
    """Lines with the fields outside `keep` left empty, added up."""
    blanks = left_out(keep)
    if not blanks:
        return lines
    added: Lines = {}
    for key, ns in lines.items():
        coarser = key._replace(**blanks)
        added[coarser] = added.get(coarser, 0) + ns
    return added


def add(lines: Lines, more: Iterable[tuple[LineKey, int]]) -> None:
    """Add lines to others, in place."""
    for key, ns in more:
        lines[key] = lines.get(key, 0) + ns


def subtract(lines: Lines, posted: Lines) -> Lines:
    """What `lines` have that `posted` have not; negative where it is the other way round; kinds that agree
    are left out.
    """
    difference = dict(lines)
    for key, ns in posted.items():
        difference[key] = difference.get(key, 0) - ns
    return {key: ns for key, ns in difference.items() if ns}
