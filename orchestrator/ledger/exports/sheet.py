"""A report as a table that every export format can write."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from orchestrator.ledger.report_by import Report
from orchestrator.ledger.run_report import RunReport

Cell = str | int | Decimal | None


class ColumnKind(StrEnum):
    """What a column holds: names, whole nanoseconds, accelerator-hours or money."""

    TEXT = "text"
    NS = "ns"
    HOURS = "hours"
    MONEY = "money"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `name` is its heading for programs, `label` for people."""

    name: str
    label: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class Sheet:
    """Title, columns, rows, total, and notes about usage without a price. The last column is the amount."""

    title: str
    period: str
    currency: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...]
    notes: tuple[str, ...]


def _figures(currency: str) -> tuple[Column, ...]:
    return (
        Column("ns", "accelerator-nanoseconds", ColumnKind.NS),
        Column("accelerator_hours", "accelerator-hours", ColumnKind.HOURS),
        Column("amount", currency, ColumnKind.MONEY),
    )


def report_sheet(report: Report, title: str, period: str) -> Sheet:
    """The table of a report by dimensions."""
    named = tuple(Column(name, name.replace("_", " "), ColumnKind.TEXT) for name in report.by)
    rows = tuple((*map(str, row.values), row.ns, row.accelerator_hours, row.amount) for row in report.rows)
    labels = ("total", *[""] * (len(report.by) - 1))
    total = (*labels, report.ns, report.accelerator_hours, report.amount)
    columns = (*named, *_figures(report.currency))
    return Sheet(title, period, report.currency, columns, rows, total, report.unpriced)


def run_sheet(report: RunReport) -> Sheet:
    """The table of a run's report."""
    named = tuple(Column(name, name, ColumnKind.TEXT) for name in ("role", "activity", "resource"))
    rows = tuple(
        (row.role, row.activity, row.resource, row.ns, row.accelerator_hours, row.amount)
        for row in report.rows
    )
    total = ("total", "", "", report.leased_ns, report.accelerator_hours, report.amount)
    columns = (*named, *_figures(report.currency))
    return Sheet(report.run_id, "", report.currency, columns, rows, total, report.unpriced)
