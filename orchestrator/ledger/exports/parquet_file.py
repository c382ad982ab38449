"""Parquet: the rows without their total; nanoseconds and money are decimals of 38 digits."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger.exports.sheet import Cell, ColumnKind, Sheet


def write_parquet(sheet: Sheet, path: Path) -> None:
    """Write the columns and rows. Currency, title and period are stored in the file's metadata."""
    arrays: dict[str, pa.Array] = {}
    for place, column in enumerate(sheet.columns):
        cells = [row[place] for row in sheet.rows]
        arrays[column.name] = pa.array([_decimal(cell) for cell in cells], _type(column.kind, cells))
    metadata = {"currency": sheet.currency, "title": sheet.title, "period": sheet.period}
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), path, compression="zstd")


def _type(kind: ColumnKind, cells: list[Cell]) -> pa.DataType:
    if kind is ColumnKind.TEXT:
        return pa.string()
    places = [-int(cell.as_tuple().exponent) for cell in cells if isinstance(cell, Decimal)]
    return pa.decimal128(38, max(places, default=0))


def _decimal(cell: Cell) -> str | Decimal | None:
    return Decimal(cell) if isinstance(cell, int) else cell
