"""`orchestrator cost carbon`: energy and CO2 emissions of leases."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, FirstDay, LastDay, days, dimensions, with_books
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.carbon import CarbonReport, CarbonRow


@with_books(prices=True, as_of=True)
def carbon(
    books: Books,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run or a pipeline (default: the whole ledger)")
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="DIM[,DIM]", help="team, run, lease, ...")] = "run",
    country: Annotated[
        str, typer.Option("--country", help="country of the grid (ISO 3166: USA, CHE, ...)")
    ] = "",
    grams_per_kwh: Annotated[
        str | None, typer.Option("--grams-per-kwh", help="carbon intensity of the grid")
    ] = None,
    pue: Annotated[str, typer.Option("--pue", help="power usage effectiveness of the data centre")] = "1",
    utilisation: Annotated[
        str, typer.Option("--utilisation", help="share of the power rating while working")
    ] = "1",
    idle: Annotated[str, typer.Option("--idle", help="share of the power rating while idle")] = "0.1",
    watts: Annotated[
        list[str] | None, typer.Option("--watts", metavar="SKU=WATTS", help="power rating of a SKU")
    ] = None,
    first: FirstDay = None,
    last: LastDay = None,
) -> None:
    """Report energy (measured by cost wrap, otherwise power rating x utilisation) and CO2.

    Without --country or --grams-per-kwh, the region of each lease determines its grid.
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
    known_at = books.as_of_ns
    name = None if run is None else books.run_id(run)
    grid = Grid(None if grams_per_kwh is None else _decimal(grams_per_kwh), country)
    drawn = read_drawn(sorted(books.output_dir.glob(f"*/{FILE}")))
    report = carbons.carbon(books.ledger, dimensions(by), grid, model, drawn, start, end, name, known_at)
    if books.as_json:
        print_json(report.to_dict())
    else:
        print_carbon(report)


def print_carbon(report: CarbonReport) -> None:
    """Print a table with its total and the assumptions."""
    columns = (*report.by, "accelerator-hours", "kWh", "measured kWh", "kg CO2e")
    rows = [(*map(str, row.values), *_figures(row)) for row in report.rows]
    total = ("total", *[""] * (len(report.by) - 1), *_figures(report.total))
    print_table(columns, rows, "", [total])
    for region, found in report.intensities.items():
        say(f"{region or 'grid'}: {found.grams_per_kwh:f} g CO2e/kWh ({found.source})")
    model = report.model
    shares = (float(model.work), float(model.idle), float(model.pue))
    say("power rating x {:g} working, x {:g} idle, PUE {:g}".format(*shares))


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
