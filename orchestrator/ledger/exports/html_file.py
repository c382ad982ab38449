"""HTML: one self-contained page with a bar chart, for screens and A4 paper."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from orchestrator.ledger.exports.sheet import Cell, ColumnKind, Sheet
from orchestrator.ledger.exports.text import printable

MAX_BARS = 25


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the chart: its label, its amount as text, and its length in percent of the longest bar."""

    label: str
    amount: str
    width: str


def write_html(sheet: Sheet, path: Path) -> None:
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=select_autoescape(["html", "j2"]))
    shown = [place for place, column in enumerate(sheet.columns) if column.kind is not ColumnKind.NS]
    page = environment.get_template("sheet.html.j2").render(
        sheet=sheet,
        title=printable(sheet.title),
        period=printable(sheet.period),
        notes=[printable(note) for note in sheet.notes],
        columns=[sheet.columns[place] for place in shown],
        rows=[[_text(row[place]) for place in shown] for row in sheet.rows],
        total=[_text(sheet.total[place]) for place in shown],
        bars=bars(sheet),
        hidden=max(len(sheet.rows) - MAX_BARS, 0),
    )
    path.write_text(page, encoding="utf-8")


def bars(sheet: Sheet) -> list[Bar]:
    """The MAX_BARS largest rows, largest first."""
    names = [place for place, column in enumerate(sheet.columns) if column.kind is ColumnKind.TEXT]
    rows = [(row, amount) for row in sheet.rows if isinstance(amount := row[-1], Decimal)]
    rows.sort(key=lambda pair: -abs(pair[1]))
    longest = abs(rows[0][1]) if rows else Decimal(0)
    return [
        Bar(
            " / ".join(_text(row[place]) or "-" for place in names) or "all",
            _text(amount),
            f"{abs(amount) / longest * 100 if longest else 0:.2f}",
        )
        for row, amount in rows[:MAX_BARS]
    ]


def _text(cell: Cell) -> str:
    """The cell as people read it, with thousands separators."""
    if cell is None:
        return "no price"
    return f"{cell:,f}" if isinstance(cell, Decimal) else printable(str(cell))
