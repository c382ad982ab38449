"""`orchestrator cost carbon`: energy and CO2 of leases."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

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
    resolve_run,
)
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.carbon import CarbonReport, CarbonRow


def carbon(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run or a pipeline; none: the whole ledger")
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="DIM[,DIM]", help="team, run, lease, ...")] = "run",
    country: Annotated[str, typer.Option("--country", help="of the grid, as ISO 3166: USA, CHE, ...")] = "",
    grams_per_kwh: Annotated[
        str | None, typer.Option("--grams-per-kwh", help="of the grid, where you know better")
    ] = None,
    pue: Annotated[str, typer.Option("--pue", help="what the building draws for each watt of IT")] = "1",
    utilisation: Annotated[
        str, typer.Option("--utilisation", help="share of the power rating at work")
    ] = "1",
    idle: Annotated[str, typer.Option("--idle", help="of the power rating, when idle")] = "0.1",
    watts: Annotated[
        list[str] | None, typer.Option("--watts", metavar="SKU=WATTS", help="the power rating of a SKU")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY|MONTH", help="the first day (included)")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DAY|MONTH", help="the last day (included)")
    ] = None,
    as_of: AsOf = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """Energy and CO2: measured where a GPU's own counter was read (cost wrap), else its power rating x
    utilisation. Without --country or --grams-per-kwh, each lease's region decides.
    """
    from orchestrator.ledger import carbon as carbons
    from orchestrator.ledger.grid import Grid
    from orchestrator.ledger.power import FILE, read_drawn

    model = carbons.EnergyModel(
        _number("--pue", pue, Fraction(1)),
        _number("--utilisation", utilisation),
        _number("--idle", idle),
        {sku: _number("--watts", value) for sku, value in map(_pair, watts or [])},
    )
    start, end = days(first, last)
    with refusing():
        known_at = moment(as_of)
        book = open_ledger(ledger, output_dir, price_book, known_at)
        name = None if run is None else resolve_run(book, output_dir, run)
        grid = Grid(None if grams_per_kwh is None else _decimal(grams_per_kwh), country)
        drawn = read_drawn(sorted(output_dir.glob(f"*/{FILE}")))
        dimensions = [part.strip() for part in by.split(",")]
        report = carbons.carbon(book, dimensions, grid, model, drawn, start, end, name, known_at)
    if as_json:
        print_json(report.to_dict())
    else:
        print_carbon(report)


def print_carbon(report: CarbonReport) -> None:
    """A table with its total and the assumptions below."""
    columns = (*report.by, "accelerator-hours", "kWh", "of it measured", "kg CO2e")
    rows = [(*map(str, row.values), *_figures(row)) for row in report.rows]
    total = ("total", *[""] * (len(report.by) - 1), *_figures(report.total))
    print_table(columns, rows, "", [total])
    for region, found in report.intensities.items():
        typer.echo(f"{region or 'grid'}: {found.grams_per_kwh:f} g CO2e/kWh ({found.source})")
    model = report.model
    shares = (float(model.work), float(model.idle), float(model.pue))
    typer.echo("power rating x {:g} at work, x {:g} idle, PUE {:g}".format(*shares))


def _figures(row: CarbonRow) -> list[str]:
    figures = (row.accelerator_hours, row.kwh, row.measured_kwh, row.kg_co2e)
    return [f"{figure:,f}" for figure in figures]


def _pair(text: str) -> tuple[str, str]:
    sku, _, value = text.rpartition("=")
    if not sku:
        raise ConfigError("--watts", text, "SKU=WATTS", "h100=700")
    return sku, value


def _number(option: str, text: str, least: Fraction = Fraction(0)) -> Fraction:
    allowed = f"a number of {least} or more"
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(option, text, allowed) from error
    if value < least:
        raise ConfigError(option, text, allowed)
    return value


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ConfigError("--grams-per-kwh", text, "a number of 0 or more") from error
    if not value.is_finite() or value < 0:
        raise ConfigError("--grams-per-kwh", text, "a number of 0 or more")
    return value
