"""`orchestrator cost export ...`: the ledger for other tools."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.options import (
    RUNS,
    AsOf,
    Json,
    LedgerUrl,
    OutputDir,
    PriceBookName,
    days,
    moment,
    open_ledger,
    refusing,
    require_writable,
    writing,
)
from orchestrator.cli.output import print_json
from orchestrator.errors import ConfigError

app = typer.Typer(help="Write the ledger in a format of others.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def exports() -> None:
    """Write the ledger in a format of others."""


@app.command("focus")
def export_focus(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=".csv or .parquet (default: CSV on stdout)")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY|MONTH", help="the first day (included)")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DAY|MONTH", help="the last day (included)")
    ] = None,
    as_of: AsOf = None,
    places: Annotated[int, typer.Option("--places", min=0, max=12, help="decimals of costs")] = 6,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """Write a FOCUS 1.2 dataset, as FinOps tools read it. Its costs add up to the report's total."""
    from orchestrator.ledger import focus
    from orchestrator.ledger.focus_rules import violations

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise ConfigError("--out", str(out), "a file named .csv or .parquet")
    if as_json and out is None:
        raise ConfigError("--json", "no --out", "--out FILE --json", "stdout holds one or the other")
    if out is not None:
        require_writable("--out", out)
    start, end = days(first, last)
    with refusing():
        known_at = moment(as_of)
        book = open_ledger(ledger, output_dir, price_book, known_at)
        rows = focus.focus_rows(book, start, end, known_at, places)
    wrong = violations(focus.COLUMNS, rows)
    if wrong:
        raise ConfigError("FOCUS", wrong[0], f"rows that conform to FOCUS {focus.VERSION}")
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            focus.write_csv(rows, Path(folder) / "focus.csv")
            typer.echo((Path(folder) / "focus.csv").read_text(encoding="utf-8"), nl=False)
        return
    with writing("--out", out):
        (focus.write_csv if out.suffix == ".csv" else focus.write_parquet)(rows, out)
    total = sum(row["BilledCost"] for row in rows)  # type: ignore[misc]
    if as_json:
        print_json({"version": focus.VERSION, "file": str(out), "rows": len(rows), "billed_cost": str(total)})
    else:
        typer.echo(f"{out}: {len(rows)} rows, {total} in all")
