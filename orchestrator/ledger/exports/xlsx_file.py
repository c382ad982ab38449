"""XLSX: a worksheet with title, total, number formats and a bar chart.

Excel computes in binary floating point; the CSV export is exact. Writing the same report twice gives
identical bytes.
"""

from __future__ import annotations

import io
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from openpyxl import Workbook
from openpyxl.chart import BarChart, Reference
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet
from openpyxl.xml.constants import ARC_CORE
from openpyxl.xml.functions import tostring

from orchestrator.ledger.exports.sheet import Cell, ColumnKind, Sheet
from orchestrator.ledger.exports.text import printable

HEADER_ROW = 4
MOMENT = datetime(1980, 1, 1)
"""The save time stored in every workbook: the earliest time that a ZIP file can represent."""
EXACT = 2**53
"""Larger integers are not exact in a floating-point cell, so they are written as text."""


def write_xlsx(sheet: Sheet, path: Path) -> None:
    """Write a workbook with one worksheet."""
    book = Workbook()
    page = book.active
    assert isinstance(page, Worksheet)
    page.title = "costs"
    _write(page, 1, 1, sheet.title)
    _write(page, 2, 1, sheet.period)
    page["A1"].font = Font(bold=True, size=14)
    lines: list[tuple[Cell, ...]] = [
        tuple(column.label for column in sheet.columns),
        *sheet.rows,
        sheet.total,
    ]
    for row, line in enumerate(lines, HEADER_ROW):
        for place, cell in enumerate(line, 1):
            _write(page, row, place, cell)
    last = HEADER_ROW + len(lines) - 1
    for place in range(1, len(sheet.columns) + 1):
        page.cell(HEADER_ROW, place).font = page.cell(last, place).font = Font(bold=True)
        page.column_dimensions[get_column_letter(place)].width = 22
    for note, text in enumerate(sheet.notes):
        _write(page, last + 2 + note, 1, f"no price: {text}")
    page.freeze_panes = f"A{HEADER_ROW + 1}"
    _format_numbers(page, sheet, last)
    if sheet.rows:
        _chart(page, sheet, last)
    _save(book, path)


def _save(book: Workbook, path: Path) -> None:
    """Save without the current time, which openpyxl would write, so that equal content gives equal bytes."""
    book.properties.created = MOMENT
    written = io.BytesIO()
    book.save(written)
    book.properties.modified = MOMENT
    with ZipFile(written) as parts, ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name in parts.namelist():
            part = tostring(book.properties.to_tree()) if name == ARC_CORE else parts.read(name)
            archive.writestr(ZipInfo(name, MOMENT.timetuple()[:6]), part, ZIP_DEFLATED)


def _write(page: Worksheet, row: int, place: int, cell: Cell) -> None:
    """Write one cell: a number as a number, everything else as text, which Excel never evaluates."""
    if isinstance(cell, Decimal):
        page.cell(row, place, float(cell))
    elif isinstance(cell, int) and abs(cell) < EXACT:
        page.cell(row, place, cell)
    elif cell != "":
        target = page.cell(row, place, "no price" if cell is None else printable(str(cell)))
        target.data_type = "s"  # openpyxl treats text that begins with = as a formula
        target.quotePrefix = True  # so does Excel as soon as the cell is edited


def _format_numbers(page: Worksheet, sheet: Sheet, last: int) -> None:
    for place, column in enumerate(sheet.columns, 1):
        if column.kind is not ColumnKind.TEXT:
            total = sheet.total[place - 1]
            places = -int(total.as_tuple().exponent) if isinstance(total, Decimal) else 0
            pattern = "#,##0" + ("." + "0" * places if places else "")
            for row in range(HEADER_ROW + 1, last + 1):
                page.cell(row, place).number_format = pattern


def _chart(page: Worksheet, sheet: Sheet, last: int) -> None:
    chart = BarChart()
    chart.type, chart.legend = "bar", None
    chart.title = printable(f"{sheet.title}, {sheet.currency}")
    amounts = Reference(page, min_col=len(sheet.columns), min_row=HEADER_ROW + 1, max_row=last - 1)
    chart.add_data(amounts)
    chart.set_categories(Reference(page, min_col=1, min_row=HEADER_ROW + 1, max_row=last - 1))
    page.add_chart(chart, f"{get_column_letter(len(sheet.columns) + 2)}{HEADER_ROW}")
