"""Headline cost and full cost: the figure that a paper would report, and the cost of all the work behind it.

The **headline cost** is that of the final runs at the rental price: whole leases including idle time, because
that is what accelerators x hours means. The **full cost** adds everything else the pipeline used (ablations,
sweeps, failed attempts, data, evaluation), and billed time that no lease explains.

A line is `recorded`; or `not_published`: an imported account names the stage without a
figure, so hours and amount are empty rather than zero and `reason` says why; or
`unexplained`: billed, but not covered by any lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.ledger.events import IDLE, LOST, UsageStated
from orchestrator.ledger.labels import UNLABELLED, labels_of
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.money import AMOUNT_PLACES
from orchestrator.ledger.report_by import ReportRow

FINAL = "final"
WORK = "work"

RECORDED, NOT_PUBLISHED, UNEXPLAINED = "recorded", "not_published", "unexplained"


@dataclass(frozen=True, slots=True)
class Sum:
    """Accelerator-hours and money."""

    accelerator_hours: Decimal
    amount: Decimal

    def to_dict(self) -> dict[str, str]:
        return {"accelerator_hours": f"{self.accelerator_hours:f}", "amount": f"{self.amount:f}"}


@dataclass(frozen=True, slots=True)
class HeadlineLine:
    """The usage of one stage for one purpose. `kind` is work, idle or lost; idle and lost are the unused
    parts of leases.

    If hours or amount are None they are unknown, and `reason` says why.
    """

    stage: str
    purpose: str
    kind: str
    accelerator_hours: Decimal | None
    amount: Decimal | None
    state: str
    reason: str = ""

    def to_dict(self) -> dict[str, str | None]:
        """Plain JSON: decimal strings, or null for unknown figures."""
        hours, amount = self.accelerator_hours, self.amount
        return {
            "stage": self.stage,
            "purpose": self.purpose,
            "kind": self.kind,
            "accelerator_hours": None if hours is None else f"{hours:f}",
            "amount": None if amount is None else f"{amount:f}",
            "state": self.state,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class RunShare:
    """The contribution of one run of the pipeline."""

    run: str
    stage: str
    purpose: str
    used: Sum


@dataclass(frozen=True, slots=True)
class Headline:
    """The lines add up to `full`, those of final runs to `headline`. `unpriced` lists usage without a price,
    which is in neither amount.
    """

    pipeline: str
    currency: str
    headline: Sum
    full: Sum
    lines: tuple[HeadlineLine, ...]
    runs: tuple[RunShare, ...]
    unpriced: tuple[str, ...]

    def to_dict(self, started_from: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Plain JSON. `started_from` maps a run to the run whose model it started from."""
        origins = started_from or {}
        return {
            "pipeline": self.pipeline,
            "currency": self.currency,
            "headline": self.headline.to_dict(),
            "full": self.full.to_dict(),
            "lines": [line.to_dict() for line in self.lines],
            "lineage": [
                {
                    "run": share.run,
                    "stage": share.stage,
                    "purpose": share.purpose,
                    "started_from": origins.get(share.run),
                    **share.used.to_dict(),
                }
                for share in self.runs
            ],
            **({"unpriced": list(self.unpriced)} if self.unpriced else {}),
        }


def headline(
    ledger: Ledger,
    pipeline: str,
    unexplained: HeadlineLine | None = None,
    as_of_ns: int | None = None,
    places: int = AMOUNT_PLACES,
) -> Headline:
    """The headline and full cost of a pipeline or a single run. Raises UnknownRunError."""
    runs = ledger.runs_of(pipeline, as_of_ns)
    dimensions = ["stage", "purpose", "activity", "run"]
    report = ledger.report_by(dimensions, as_of_ns=as_of_ns, places=places, name=pipeline)
    recorded = _recorded(report.rows, runs)
    lines = [*recorded, *_not_published(ledger, runs, as_of_ns), *([unexplained] if unexplained else [])]
    return Headline(
        pipeline=pipeline,
        currency=report.currency,
        headline=_sum(line for line in recorded if line.purpose == FINAL),
        full=_sum(lines),
        lines=tuple(lines),
        runs=_shares(runs, report.rows),
        unpriced=report.unpriced,
    )


def _recorded(rows: Sequence[ReportRow], runs: Sequence[str]) -> list[HeadlineLine]:
    """Turn rows of (stage, purpose, activity, run), already rounded so that they add up, into lines: final
    ones first, stages in the order in which the ledger first saw them.
    """
    heard = {run: place for place, run in enumerate(runs)}
    places: dict[str, int] = {}
    hours: dict[tuple[str, str, str], Decimal] = {}
    amounts: dict[tuple[str, str, str], Decimal | None] = {}
    for row in rows:
        stage, purpose, activity, run = map(str, row.values)
        places[stage] = min(heard.get(run, len(heard)), places.get(stage, len(heard)))
        key = (stage, purpose, activity if activity in (IDLE, LOST) else WORK)
        hours[key] = hours.get(key, Decimal(0)) + row.accelerator_hours
        before = amounts.get(key, Decimal(0))
        amounts[key] = None if before is None or row.amount is None else before + row.amount
    kinds = (WORK, IDLE, LOST)
    order = sorted(hours, key=lambda key: (key[1] != FINAL, key[1], places[key[0]], kinds.index(key[2])))
    return [HeadlineLine(*key, hours[key], amounts[key], RECORDED) for key in order]


def _not_published(ledger: Ledger, runs: Sequence[str], as_of_ns: int | None) -> list[HeadlineLine]:
    events = ledger.events(runs, as_of_ns)
    labels = labels_of(events)
    found: list[HeadlineLine] = []
    for event in events:
        if isinstance(event, UsageStated) and not event.accelerator_ns:
            label = labels.get(event.run_id, UNLABELLED)
            line = HeadlineLine(label.stage, label.purpose, WORK, None, None, NOT_PUBLISHED, event.source)
            found.append(line)
    return found


def _shares(runs: Sequence[str], rows: Sequence[ReportRow]) -> tuple[RunShare, ...]:
    """The usage of each run that used anything, in the order in which the ledger first saw the runs."""
    by_run: dict[tuple[str, str, str], list[ReportRow]] = {}
    for row in rows:
        stage, purpose, _, run = map(str, row.values)
        by_run.setdefault((run, stage, purpose), []).append(row)
    place = {run: index for index, run in enumerate(runs)}
    keys = sorted(by_run, key=lambda key: (place.get(key[0], len(place)), key))
    return tuple(RunShare(*key, _sum(by_run[key])) for key in keys)


def _sum(lines: Iterable[HeadlineLine | ReportRow]) -> Sum:
    counted = list(lines)
    hours = sum((line.accelerator_hours or Decimal(0) for line in counted), Decimal(0))
    return Sum(hours, sum((line.amount or Decimal(0) for line in counted), Decimal(0)))
