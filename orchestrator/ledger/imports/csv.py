"""Imports usage from a CSV file: figures from a paper, or from another billing system.

    organisation,cost_centre,team,project,pipeline,run,stage,purpose,resource,count,start,end,hours,
    unit_price,currency,source

- `resource` is a SKU of the price book (`p5.48xlarge`, `cpu-slot`). `cpu` and SKUs that begin with `cpu-`
  count CPU slots, all others accelerators. `count` of them (empty: 1) were held ...
- ... from `start` to `end` (ISO 8601, UTC unless it has an offset; a date means its midnight; the end is
  exclusive), or for `hours` each. For a total in accelerator-hours, set `hours` and leave `count` empty.
  `start` with `hours` says when they began.
- A line with neither is a stage whose figure was not published, for the reason in `source`.
- `unit_price` is the price of one accelerator-hour, in `currency`; empty: from the price book.
- An empty `run` means the name of the pipeline.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.imports.statements import PURPOSES, Lines, Statement, identity
from orchestrator.ledger.labels import Labels

COLUMNS = (
    *("organisation", "cost_centre", "team", "project", "pipeline", "run", "stage", "purpose"),
    *("resource", "count", "start", "end", "hours", "unit_price", "currency", "source"),
)

_NUMBER = re.compile(r"\d+(\.\d+)?", re.ASCII)
_EITHER = "either start and end, or hours"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(path: Path) -> Lines:
    """Read the lines of a file. Raises LedgerError if it is not a CSV file with these columns."""
    lines = Lines()
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            _require_columns(path, header)
            for cells in rows:
                number = rows.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                try:
                    statement = _statement(path, number, header, cells)
                    first = seen.setdefault(statement.event_id, number)
                    if first != number:
                        hint = "distinguish them by run or source"
                        raise LedgerError("line", "a copy", f"a line that differs from line {first}", hint)
                except LedgerError as error:
                    where = f"{path}:{number} {error.key}"
                    lines.refused.append(LedgerError(where, error.value, error.allowed, error.hint))
                else:
                    lines.statements.append(statement)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LedgerError(str(path), str(error), "a CSV file in UTF-8") from error
    return lines


def _require_columns(path: Path, header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    if missing or unknown or len(header) != len(COLUMNS):
        got = f"no {', '.join(missing)}" if missing else f"also {', '.join(unknown) or 'a repeated column'}"
        raise LedgerError(f"{path}:1", got, ",".join(COLUMNS))


def _statement(path: Path, number: int, header: list[str], cells: list[str]) -> Statement:
    if len(cells) != len(header):
        raise LedgerError("line", f"{len(cells)} cells", f"{len(header)} cells")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    for name, cell in row.items():
        if "\0" in cell:
            raise LedgerError(name, ascii(cell), "text without NUL")
    if not row["resource"]:
        raise LedgerError("resource", "nothing", "a SKU of the price book, gpu or cpu")
    if row["purpose"] and row["purpose"] not in PURPOSES:
        raise LedgerError("purpose", row["purpose"], ", ".join(PURPOSES))
    run = row["run"] or row["pipeline"]
    if not run:
        raise LedgerError("run", "nothing", "the name of a run or a pipeline")
    start_ns, end_ns, accelerator_ns = _extent(row)
    return Statement(
        where=f"{path}:{number}",
        event_id=identity("csv", *(row[name] for name in COLUMNS)),
        run=run,
        labels=Labels(
            row["organisation"],
            row["cost_centre"],
            row["team"],
            row["project"],
            row["pipeline"],
            "",
            row["stage"],
            row["purpose"],
        ),
        sku=row["resource"],
        accelerator_ns=accelerator_ns,
        start_ns=start_ns,
        end_ns=end_ns,
        unit_price=row["unit_price"],
        currency=row["currency"],
        source=row["source"] or path.name,
    )


def _extent(row: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Start, end and accelerator-nanoseconds of a row; all None if no figure was published."""
    counted = _number(row, "count") if row["count"] else Fraction(1)
    if not counted:
        raise LedgerError("count", row["count"], "more than 0")
    start = _instant(row, "start") if row["start"] else None
    end = _instant(row, "end") if row["end"] else None
    if row["hours"]:
        if end is not None:
            raise LedgerError(
                "hours", row["hours"], "nothing if there is an end", "either start and end, or hours"
            )
        length = _number(row, "hours") * HOUR_NS
        end = None if start is None else start + round(length)
        return start, end, round(length * counted)
    if start is None and end is None:
        return None, None, None
    if start is None or end is None:
        missing = "start" if start is None else "end"
        raise LedgerError(missing, "nothing", "a time", _EITHER)
    if end < start:
        raise LedgerError("end", row["end"], f"{row['start']} or later", "a negative duration")
    return start, end, round((end - start) * counted)


def _number(row: Mapping[str, str], name: str) -> Fraction:
    if not _NUMBER.fullmatch(row[name]):
        raise LedgerError(name, row[name], "a decimal of 0 or more", "without signs and thousands separators")
    return Fraction(row[name])


def _instant(row: Mapping[str, str], name: str) -> int:
    try:
        at = datetime.fromisoformat(row[name])
    except ValueError as error:
        raise LedgerError(name, row[name], "YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS", "UTC") from error
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH
    ns = (since // timedelta(microseconds=1)) * 1000
    if not 0 <= ns < 1 << 63:
        raise LedgerError(name, row[name], "a time from 1970 to 2262")
    return ns
