"""Lines: entries of the same kind added up, with the labels of their run.

Lines are priced, reported and, when a month is closed, posted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.ledger.calendar import month_of
from orchestrator.ledger.entries import Entry
from orchestrator.ledger.labels import UNLABELLED, Labels


class LineKey(NamedTuple):
    """The fields that two entries of the same kind have in common.

    `unit_price` and `currency` are empty if the price book determines them.
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
        return month_of(self.day)


Lines = dict[LineKey, int]
"""Accelerator-nanoseconds by kind; negative for reversals."""

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
"""What a report can group by. `month` and `day` are when usage happened, `posted` is the month it counts in
(a later one for an adjustment), `kind` is usage or adjustment.
"""


def to_lines(entries: Iterable[Entry], labels: Mapping[str, Labels]) -> Lines:
    """Add up entries of the same kind."""
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
"""Fields that the price of a line depends on, and that are therefore always kept."""


def left_out(keep: Collection[str]) -> dict[str, Any]:
    """The empty values of the fields that are neither in `keep` nor in PRICED_BY."""
    return {
        name: 0 if name == "attempt" else ""
        for name in LineKey._fields
        if name not in keep and name not in PRICED_BY
    }


def keep_fields(lines: Lines, keep: Collection[str]) -> Lines:
    """Merge lines that only differ in fields outside `keep`, and leave those fields empty."""
    blanks = left_out(keep)
    if not blanks:
        return lines
    added: Lines = {}
    for key, ns in lines.items():
        coarser = key._replace(**blanks)
        added[coarser] = added.get(coarser, 0) + ns
    return added


def add(lines: Lines, more: Iterable[tuple[LineKey, int]]) -> None:
    """Add `more` to `lines` in place."""
    for key, ns in more:
        lines[key] = lines.get(key, 0) + ns


def subtract(lines: Lines, posted: Lines) -> Lines:
    """`lines` minus `posted`: negative where more was posted, without kinds whose difference is 0."""
    difference = dict(lines)
    for key, ns in posted.items():
        difference[key] = difference.get(key, 0) - ns
    return {key: ns for key, ns in difference.items() if ns}
