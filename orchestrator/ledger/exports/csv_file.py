"""CSV: the rows without their total, with exact numbers.

A text cell that a spreadsheet would treat as a formula is prefixed with a quote (`text.csv_text`). Numbers,
including negative ones, are written unchanged.
"""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

from orchestrator.ledger.exports.sheet import Cell, Sheet
from orchestrator.ledger.exports.text import csv_text


def write_csv(sheet: Sheet, path: Path) -> None:
    """Write the columns and rows (RFC 4180, UTF-8). The currency of the amounts is a column of its own."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([*(csv_text(column.name) for column in sheet.columns), "currency"])
        for row in sheet.rows:
            writer.writerow([*map(_text, row), csv_text(sheet.currency)])


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    return csv_text(cell) if isinstance(cell, str) else str(cell)
