"""`orchestrator cost ...`: the ledger on the command line."""

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
from orchestrator.cli.cost.options import (
    RUNS,
    AsOf,
    Json,
    LedgerUrl,
    OutputDir,
    PriceBookName,
    days,
    load_price_book,
    moment,
    open_ledger,
    refusing,
    require_writable,
    resolve_run,
    writing,
)
from orchestrator.cli.cost.reconcile import reconcile
from orchestrator.cli.cost.reconcile_ray import reconcile_ray
from orchestrator.cli.cost.watch import watch
from orchestrator.cli.cost.wrap import wrap
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.exports.sheet import Sheet

app = typer.Typer(
    help="Accelerator-hours and money.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
prices_app = typer.Typer(help="What an accelerator-hour costs.", no_args_is_help=True, rich_markup_mode=None)
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
def report(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run or a pipeline; none: the whole ledger")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="DIM[,DIM]", help="team, project, role, activity, month, ..."),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY|MONTH", help="the first day (included)")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DAY|MONTH", help="the last day (included)")
    ] = None,
    as_of: AsOf = None,
    idle: Annotated[
        str,
        typer.Option(
            "--idle", help="with --by: keep idle and lost time apart, or share it: proportional, uniform"
        ),
    ] = "keep",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="also write it: .csv, .xlsx, .parquet or .html"),
    ] = None,
    places: Annotated[int, typer.Option("--places", min=0, max=12, help="decimals of amounts")] = 6,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """What a run or a pipeline used and cost, or what a period cost by any dimensions (--by)."""
    if by is None and run is None:
        raise ConfigError(
            "cost report", "neither RUN nor --by", "cost report RUN, or cost report --by team,role"
        )
    if by is None and (first or last):
        raise ConfigError("--from, --to", "no --by", "a report by dimensions", "a run is reported as a whole")
    start, end = days(first, last)
    with refusing():
        from orchestrator.ledger.exports.sheet import report_sheet, run_sheet
        from orchestrator.ledger.exports.write import write_sheet

        known_at = moment(as_of)
        book = open_ledger(ledger, output_dir, price_book, known_at)
        name = None if run is None else resolve_run(book, output_dir, run)
        if by is None and name is not None:
            of_run = book.report(name, known_at, places)
            sheet, document = run_sheet(of_run), of_run.to_dict()
        else:
            dimensions = [part.strip() for part in (by or "").split(",")]
            result = book.report_by(dimensions, start, end, known_at, places, name, idle)
            period = " ".join(f"{word} {text}" for word, text in (("from", first), ("to", last)) if text)
            sheet = report_sheet(result, f"Costs of {name or 'all runs'} by {', '.join(dimensions)}", period)
            document = result.to_dict()
        if output is not None:
            write_sheet(sheet, output)
    if as_json:
        print_json(document)
    else:
        print_sheet(sheet)


@app.command()
def ship(
    directory: Annotated[Path, typer.Argument(help="a folder of *.jsonl usage events")],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Take the usage events of a folder into the ledger; what it already has is passed over."""
    if not directory.is_dir():
        raise ConfigError("DIRECTORY", str(directory), "a folder of *.jsonl usage events")
    with refusing():
        new = open_ledger(ledger, output_dir).ship(directory)
    if as_json:
        print_json({"new_events": new})
    else:
        typer.echo(f"{new} new events")


@app.command()
def purpose(
    run: Annotated[str, typer.Argument(help="a run")],
    what: Annotated[str, typer.Argument(metavar="PURPOSE", help="final, ablation, failed, ...")],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Say what a run turned out to be for; the latest word counts, and closed months get an adjustment."""
    from orchestrator.ledger.imports.statements import PURPOSES

    if what not in PURPOSES:
        raise ConfigError("PURPOSE", what, ", ".join(PURPOSES))
    with refusing():
        from orchestrator.ledger.events import PurposeSet

        book = open_ledger(ledger, output_dir)
        run_id = resolve_run(book, output_dir, run)
        if not book.knows(run_id):
            raise ConfigError("RUN", run, "a run of the ledger", "see: orchestrator cost report --by run")
        book.book([PurposeSet(uuid.uuid4().hex, time.time_ns(), run_id, what)])
    if as_json:
        print_json({"run_id": run_id, "purpose": what})
    else:
        typer.echo(f"{run_id} counts as {what}")


@app.command()
def quarantine(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="also the events of this run")] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """What does not count, and why: lines that are no event; a run's events that contradict others."""
    with refusing():
        book = open_ledger(ledger, output_dir)
        rows = [{"row": line.source, "reason": line.reason} for line in book.bad_lines()]
        if run is not None:
            rejected = book.rejections(resolve_run(book, output_dir, run))
            rows += [{"row": f"event {found.event_id}", "reason": found.reason} for found in rejected]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("row", "reason"), [(row["row"], row["reason"]) for row in rows], "nothing is quarantined"
        )


@app.command()
def close(
    month: Annotated[str, typer.Argument(metavar="YYYY-MM")],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Close a month: post its lines with their prices. What becomes known later counts in the next month."""
    with refusing():
        done = open_ledger(ledger, output_dir).close(month)
    if as_json:
        print_json({"month": done.period, "postings": done.postings, "head": done.head})
    else:
        typer.echo(f"{done.period} is closed: {done.postings} postings, hash {done.head}")


@app.command()
def verify(ledger: LedgerUrl = None, output_dir: OutputDir = RUNS, as_json: Json = False) -> None:
    """Check the hash chain over the postings of all closed months."""
    with refusing():
        book = open_ledger(ledger, output_dir)
        postings = book.verify()
        closes = book.closes()
    if as_json:
        closed = [{"month": one.period, "postings": one.postings, "head": one.head} for one in closes]
        print_json({"postings": postings, "closed": closed})
    else:
        rows = [(one.period, str(one.postings), one.head[:16]) for one in closes]
        print_table(("month", "postings", "hash"), rows, "no month is closed")
        typer.echo(f"the chain of {postings} postings holds")


@prices_app.command("list")
def list_prices(
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """The prices that reports use, newest book first."""
    with refusing():
        rows = open_ledger(ledger, output_dir, price_book).price_rows()
    if as_json:
        print_json(rows)
        return
    columns = ("book", "sku", "region", "commitment", "per_hour", "currency", "from", "to")
    print_table(columns, [[str(row[name] or "") for name in columns] for row in rows], "no prices")
    typer.echo("--json gives each price's source")


@prices_app.command("adopt")
def adopt_prices(
    book: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="a yaml file, or a name under conf/price_book")
    ],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Make a price book the newest. Closed months keep the prices that they were closed with."""
    with refusing():
        read = load_price_book(book)
        adopted = open_ledger(ledger, output_dir).adopt(read)
    if as_json:
        print_json({"name": read.name, "adopted": adopted})
    else:
        typer.echo(f"{read.name}: {'adopted' if adopted else 'is the newest of its name already'}")


@prices_app.command("import-aws")
def import_aws_prices(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the price book to write (.yaml)")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="JSON of `aws pricing get-products`; none: ask AWS"),
    ] = None,
    instance_types: Annotated[
        str, typer.Option("--instance-types", metavar="TYPE[,TYPE]", help="what to ask AWS for")
    ] = "p5.48xlarge,p4d.24xlarge",
    region: Annotated[str, typer.Option("--region", help="where, when AWS is asked")] = "us-east-1",
    as_json: Json = False,
) -> None:
    """Write a price book with AWS list prices. `cost prices adopt FILE` then makes it the newest."""
    from datetime import UTC, datetime

    import yaml

    from orchestrator.ledger.aws_prices import fetch_products, price_book_of, read_products
    from orchestrator.ledger.prices import PriceBook

    require_writable("--out", out)
    with refusing():
        products = fetch_products(region, instance_types.split(",")) if file is None else read_products(file)
        content = price_book_of(products, out.stem, datetime.now(UTC).date())
        rows = PriceBook.parse(content).rows()
    with writing("--out", out):
        out.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if as_json:
        print_json(rows)
    else:
        typer.echo(f"{out}: {len(rows)} prices")


def print_sheet(sheet: Sheet) -> None:
    """A report as a table, with its total below."""
    shown = [place for place, column in enumerate(sheet.columns) if column.kind != "ns"]
    labels = [sheet.columns[place].label for place in shown]
    rows = [[_cell(row[place]) for place in shown] for row in (*sheet.rows, sheet.total)]
    print_table(labels, rows[:-1], "", totals=rows[-1:])
    for reason in sheet.notes:
        typer.echo(f"no price: {reason}", err=True)


def _cell(cell: str | int | Decimal | None) -> str:
    if cell is None:
        return "no price"
    return f"{cell:f}" if isinstance(cell, Decimal) else str(cell)
