"""Writes a sheet to a file, in the format of the file's suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.exports.csv_file import write_csv
from orchestrator.ledger.exports.html_file import write_html
from orchestrator.ledger.exports.parquet_file import write_parquet
from orchestrator.ledger.exports.sheet import Sheet
from orchestrator.ledger.exports.xlsx_file import write_xlsx

WRITERS: Mapping[str, Callable[[Sheet, Path], None]] = {
    ".csv": write_csv,
    ".xlsx": write_xlsx,
    ".parquet": write_parquet,
    ".html": write_html,
}


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Write a sheet atomically, in the format of the path's suffix.

    Raises LedgerError for an unknown suffix or a path that cannot be written.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise LedgerError(
            "--output", str(path), ", ".join(f"a name ending in {suffix}" for suffix in WRITERS)
        )
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(sheet, unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise LedgerError("--output", str(path), "a writable file", str(error)) from error
