"""CSV: the rows without their total, numbers written out exactly."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

from orchestrator.ledger.exports.sheet import Cell, Sheet


def write_csv(sheet: Sheet, path: Path) -> None:
    """Write the columns and rows (RFC 4180, UTF-8); the amount's currency is a column of its own."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([*(column.name for column in sheet.columns), "currency"])
        for row in sheet.rows:
            writer.writerow([*map(_text, row), sheet.currency])


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:f}" if isinstance(cell, Decimal) else str(cell)
