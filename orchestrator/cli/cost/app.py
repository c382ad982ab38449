"""`orchestrator cost ...`: all commands of the ledger, and those about the ledger as a whole."""

from __future__ import annotations

import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.budget import app as budget_app
from orchestrator.cli.cost.carbon import carbon
from orchestrator.cli.cost.export import app as export_app
from orchestrator.cli.cost.headline import headline
from orchestrator.cli.cost.imports import app as import_app
from orchestrator.cli.cost.insight import forecast, trend, units, waste
from orchestrator.cli.cost.options import Books, FirstDay, LastDay, Places, days, dimensions, with_books
from orchestrator.cli.cost.prices import app as prices_app
from orchestrator.cli.cost.reconcile import reconcile
from orchestrator.cli.cost.reconcile_ray import reconcile_ray
from orchestrator.cli.cost.watch import watch
from orchestrator.cli.cost.wrap import wrap
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.exports.sheet import Sheet

app = typer.Typer(
    help="Accelerator-hours and money.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(prices_app, name="prices")
app.add_typer(budget_app, name="budget")
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")
app.command()(headline)
app.command()(carbon)
for command in (waste, units, forecast, trend):
    app.command()(command)
app.command()(reconcile)
app.command("reconcile-ray")(reconcile_ray)
app.command()(watch)
app.command(context_settings={"allow_interspersed_args": False})(wrap)


@app.command()
@with_books(prices=True, as_of=True)
def report(
    books: Books,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run or a pipeline (default: the whole ledger)")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="DIM[,DIM]", help="team, project, role, activity, month, ..."),
    ] = None,
    first: FirstDay = None,
    last: LastDay = None,
    idle: Annotated[
        str,
        typer.Option(
            "--idle",
            help="with --by: keep idle and lost time separate, or share it: proportional, uniform",
        ),
    ] = "keep",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="also write a file: .csv, .xlsx, .parquet or .html"),
    ] = None,
    places: Places = 6,
) -> None:
    """Report what a run used and cost, or what a period cost by any dimensions (--by)."""
    if by is None and run is None:
        raise ConfigError(
            "cost report", "neither RUN nor --by", "cost report RUN, or cost report --by team,role"
        )
    if by is None and (first or last):
        raise ConfigError(
            "--from, --to", "no --by", "a report by dimensions", "the report of a run covers all of it"
        )
    from orchestrator.ledger.exports.sheet import report_sheet, run_sheet
    from orchestrator.ledger.exports.write import write_sheet

    start, end = days(first, last)
    known_at = books.as_of_ns
    name = None if run is None else books.run_id(run)
    if by is None and name is not None:
        of_run = books.ledger.report(name, known_at, places)
        sheet, document = run_sheet(of_run), of_run.to_dict()
    else:
        found = books.ledger.report_by(dimensions(by or ""), start, end, known_at, places, name, idle)
        period = " ".join(f"{word} {text}" for word, text in (("from", first), ("to", last)) if text)
        sheet = report_sheet(found, f"Costs of {name or 'all runs'} by {', '.join(found.by)}", period)
        document = found.to_dict()
    if output is not None:
        write_sheet(sheet, output)
    if books.as_json:
        print_json(document)
    else:
        print_sheet(sheet)


@app.command()
@with_books()
def ship(
    books: Books,
    directory: Annotated[Path, typer.Argument(help="a directory with *.jsonl files of usage events")],
) -> None:
    """Ship the usage events of a directory to the ledger. Events that it already has are skipped."""
    if not directory.is_dir():
        raise ConfigError("DIRECTORY", str(directory), "a directory with *.jsonl files of usage events")
    new = books.ledger.ship(directory)
    if books.as_json:
        print_json({"new_events": new})
    else:
        say(f"{new} new events")


@app.command()
@with_books()
def purpose(
    books: Books,
    run: Annotated[str, typer.Argument(help="a run")],
    what: Annotated[str, typer.Argument(metavar="PURPOSE", help="final, ablation, failed, ...")],
) -> None:
    """Change the purpose of a run. The latest purpose counts; closed months get an adjustment."""
    from orchestrator.ledger.events import PurposeSet
    from orchestrator.ledger.imports.statements import PURPOSES

    if what not in PURPOSES:
        raise ConfigError("PURPOSE", what, ", ".join(PURPOSES))
    run_id = books.run_id(run)
    if not books.ledger.knows(run_id):
        raise ConfigError("RUN", run, "a run in the ledger", "see: orchestrator cost report --by run")
    books.ledger.book([PurposeSet(uuid.uuid4().hex, time.time_ns(), run_id, what)])
    if books.as_json:
        print_json({"run_id": run_id, "purpose": what})
    else:
        say(f"The purpose of {run_id} is now {what}.")


@app.command()
@with_books()
def quarantine(
    books: Books,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="also list events of this run")] = None,
) -> None:
    """List what is not counted, and why: malformed lines, and events that contradict
    other events of their run.
    """
    rows = [{"row": line.source, "reason": line.reason} for line in books.ledger.bad_lines()]
    if run is not None:
        rejected = books.ledger.rejections(books.run_id(run))
        rows += [{"row": f"event {found.event_id}", "reason": found.reason} for found in rejected]
    if books.as_json:
        print_json(rows)
    else:
        cells = [(row["row"], row["reason"]) for row in rows]
        print_table(("row", "reason"), cells, "The quarantine is empty.")


@app.command()
@with_books()
def close(books: Books, month: Annotated[str, typer.Argument(metavar="YYYY-MM")]) -> None:
    """Close a month: post its lines with their prices. Later events count in the following month."""
    done = books.ledger.close(month)
    if books.as_json:
        print_json({"month": done.period, "postings": done.postings, "head": done.head})
    else:
        say(f"{done.period} is closed: {done.postings} postings, hash {done.head}")


@app.command()
@with_books()
def verify(books: Books) -> None:
    """Verify the hash chain over the postings of all closed months."""
    postings = books.ledger.verify()
    closes = books.ledger.closes()
    if books.as_json:
        closed = [{"month": one.period, "postings": one.postings, "head": one.head} for one in closes]
        print_json({"postings": postings, "closed": closed})
    else:
        rows = [(one.period, str(one.postings), one.head[:16]) for one in closes]
        print_table(("month", "postings", "hash"), rows, "No month is closed.")
        say(f"The hash chain of {postings} postings is intact.")


def print_sheet(sheet: Sheet) -> None:
    """Print a report as a table with its total."""
    shown = [place for place, column in enumerate(sheet.columns) if column.kind != "ns"]
    labels = [sheet.columns[place].label for place in shown]
    rows = [[_cell(row[place]) for place in shown] for row in (*sheet.rows, sheet.total)]
    print_table(labels, rows[:-1], "", totals=rows[-1:])
    for reason in sheet.notes:
        say(f"no price: {reason}", err=True)


def _cell(cell: str | int | Decimal | None) -> str:
    if cell is None:
        return "no price"
    return f"{cell:f}" if isinstance(cell, Decimal) else str(cell)
