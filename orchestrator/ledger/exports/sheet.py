"""A report as a table that every export format can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.report_by import Report
from orchestrator.ledger.run_report import RunReport

Cell = str | int | Decimal | None


class Kind(StrEnum):
    """What a column holds: names, whole nanoseconds, accelerator-hours or money."""

    TEXT = "text"
    NS = "ns"
    HOURS = "hours"
    MONEY = "money"


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `label` is its heading for people, `name` for machines."""

    name: str
    label: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Sheet:
    """A title, columns, rows, their total, and what has no price. The last column is the amount."""

    title: str
    period: str
    currency: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...]
    notes: tuple[str, ...]


def _figures(currency: str) -> tuple[Column, ...]:
    return (
        Column("ns", "accelerator-nanoseconds", Kind.NS),
        Column("accelerator_hours", "accelerator-hours", Kind.HOURS),
        Column("amount", currency, Kind.MONEY),
    )


def report_sheet(report: Report, title: str, period: str) -> Sheet:
    """A report by dimensions."""
    named = tuple(Column(name, name.replace("_", " "), Kind.TEXT) for name in report.by)
    rows = tuple((*map(str, row.values), row.ns, row.accelerator_hours, row.amount) for row in report.rows)
    labels = ("total", *[""] * (len(report.by) - 1))
    total = (*labels, report.ns, report.accelerator_hours, report.amount)
    columns = (*named, *_figures(report.currency))
    return Sheet(title, period, report.currency, columns, rows, total, report.unpriced)


def run_sheet(report: RunReport) -> Sheet:
    """A run's report."""
    named = tuple(Column(name, name, Kind.TEXT) for name in ("role", "activity", "resource"))
    rows = tuple(
        (row.role, row.activity, row.resource, row.ns, row.accelerator_hours, row.amount)
        for row in report.rows
    )
    total = ("total", "", "", report.leased_ns, report.accelerator_hours, report.amount)
    columns = (*named, *_figures(report.currency))
    return Sheet(report.run_id, "", report.currency, columns, rows, total, report.unpriced)


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Write a sheet in the format of the path's suffix, whole or not at all.

    Raises LedgerError for another suffix, or a path that can't be written.
    """
    writers = _writers()
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise LedgerError(
            "--output", str(path), ", ".join(f"a name ending in {suffix}" for suffix in writers)
        )
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(sheet, unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise LedgerError("--output", str(path), "a file that can be written", str(error)) from error


def _writers() -> Mapping[str, Callable[[Sheet, Path], None]]:
    from orchestrator.ledger.exports.csv_file import write_csv
    from orchestrator.ledger.exports.html_file import write_html
    from orchestrator.ledger.exports.parquet_file import write_parquet
    from orchestrator.ledger.exports.xlsx_file import write_xlsx

    return {".csv": write_csv, ".xlsx": write_xlsx, ".parquet": write_parquet, ".html": write_html}
