"""`orchestrator cost export ...`: the ledger for other tools."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.options import (
    Books,
    FirstDay,
    LastDay,
    Places,
    days,
    require_writable,
    with_books,
    writing,
)
from orchestrator.cli.output import print_json
from orchestrator.cli.terminal import say, say_data
from orchestrator.errors import ConfigError

app = typer.Typer(help="Export the ledger for other tools.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def exports() -> None:
    """Export the ledger for other tools."""


@app.command("focus")
@with_books(prices=True, as_of=True)
def export_focus(
    books: Books,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=".csv or .parquet (default: CSV on stdout)")
    ] = None,
    first: FirstDay = None,
    last: LastDay = None,
    places: Places = 6,
) -> None:
    """Write a FOCUS 1.2 dataset for FinOps tools. Its costs add up to the report's total."""
    from orchestrator.ledger import focus
    from orchestrator.ledger.focus_rules import violations

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise ConfigError("--out", str(out), "a file named .csv or .parquet")
    if books.as_json and out is None:
        raise ConfigError(
            "--json", "no --out", "--out FILE --json", "stdout can hold either the CSV or the JSON"
        )
    if out is not None:
        require_writable("--out", out)
    start, end = days(first, last)
    rows = focus.focus_rows(books.ledger, start, end, books.as_of_ns, places)
    wrong = violations(focus.COLUMNS, rows)
    if wrong:
        raise ConfigError("FOCUS", wrong[0], f"rows that conform to FOCUS {focus.VERSION}")
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            focus.write_csv(rows, Path(folder) / "focus.csv")
            say_data((Path(folder) / "focus.csv").read_text(encoding="utf-8"))
        return
    with writing("--out", out):
        (focus.write_csv if out.suffix == ".csv" else focus.write_parquet)(rows, out)
    total = sum(row["BilledCost"] for row in rows)  # type: ignore[misc]
    if books.as_json:
        print_json({"version": focus.VERSION, "file": str(out), "rows": len(rows), "billed_cost": str(total)})
    else:
        say(f"{out}: {len(rows)} rows, {total} in total")
