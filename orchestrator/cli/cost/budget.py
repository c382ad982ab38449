"""`orchestrator cost budget ...`: what may be spent, and what is left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import RUNS, Json, LedgerUrl, OutputDir, days, open_ledger, refusing
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import BudgetStopError, ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.budgets import BudgetStatus
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.variance import Variance

app = typer.Typer(help="What may be spent, and what is left.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("set")
def define(
    name: Name,
    limit: Annotated[str, typer.Option("--limit", help="money, in --currency")],
    first: Annotated[str, typer.Option("--from", metavar="DAY|MONTH", help="the first day (included)")],
    last: Annotated[
        str | None,
        typer.Option("--to", metavar="DAY|MONTH", help="the last day (default: of --from's period)"),
    ] = None,
    scope: Annotated[
        str, typer.Option("--scope", metavar="LABEL=VALUE[,...]", help="team=blue,project=x (default: all)")
    ] = "",
    warn_at: Annotated[
        str, typer.Option("--warn-at", metavar="SHARE[,SHARE]", help="shares of the limit")
    ] = "0.5,0.8,0.95",
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="the ledger's, which is the default")
    ] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Make a budget, or change it from now on."""
    from orchestrator.ledger.budgets import Budget
    from orchestrator.ledger.variance import parse_scope

    start, end = days(first, last or first)
    assert start is not None and end is not None
    with refusing():
        shares = tuple(_decimal("--warn-at", share) for share in warn_at.split(",") if share)
        book = open_ledger(ledger, output_dir)
        money = _currency(currency, book)
        budget = Budget(name, parse_scope(scope), start, end, _decimal("--limit", limit), money, shares)
        book.budgets.define(budget)
        _show([book.budgets.status(name)], as_json)


@app.command("list")
def list_budgets(ledger: LedgerUrl = None, output_dir: OutputDir = RUNS, as_json: Json = False) -> None:
    """How all budgets stand: settled, pending for work in flight, available."""
    with refusing():
        _show(open_ledger(ledger, output_dir).budgets.statuses(), as_json)


@app.command()
def variance(ledger: LedgerUrl = None, output_dir: OutputDir = RUNS, as_json: Json = False) -> None:
    """Each budget against what the ledger counts in its scope until now."""
    with refusing():
        found = open_ledger(ledger, output_dir).variances()
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    rows = [
        (
            one.budget.name,
            f"{one.budget.limit:f}",
            f"{one.planned:f}",
            f"{one.actual:f}",
            f"{one.variance:+f}",
        )
        for one in found
    ]
    print_table(("budget", "limit", "planned until now", "actual", "variance"), rows, "there is no budget")
    print_unpriced(found)


def print_unpriced(found: Iterable[Variance]) -> None:
    """Say on stderr, as reports do, what counts in a budget's scope and in no amount."""
    for one in found:
        for sku, hours in one.unpriced.items():
            typer.echo(f"no price: {hours:f} accelerator-hours of {sku} in {one.budget.name}", err=True)


@app.command()
def check(
    name: Name,
    webhook: Annotated[
        str | None, typer.Option("--webhook", metavar="URL", help="told once of each threshold crossed")
    ] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> int:
    """Warn of thresholds crossed, each once; exit 3 if nothing is left."""
    with refusing():
        book = open_ledger(ledger, output_dir)
        status = book.budgets.status(name)
        warn(book, name, webhook)
        _show([status], as_json)
    return BudgetStopError.exit_code if status.available <= 0 else 0


def warn(ledger: Ledger, name: str, webhook: str | None) -> None:
    """Say on stderr, and to a webhook, which thresholds a budget has newly crossed."""
    from orchestrator.launch.budgets import BudgetWarning
    from orchestrator.launch.webhook import post

    if webhook is not None and not webhook.startswith(("https://", "http://")):
        raise ConfigError("--webhook", webhook, "an http or https URL")
    for share in ledger.budgets.warn_once(name):
        warned = BudgetWarning(ledger.budgets.status(name), share)
        typer.echo(warned.text, err=True)
        if webhook is not None:
            try:
                post(webhook, warned.to_json())
            except OSError as error:
                typer.echo(f"the webhook did not answer: {error}", err=True)


def _decimal(option: str, text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(option, text, "a decimal number") from error
    if not value.is_finite():
        raise ConfigError(option, text, "a decimal number")
    return value


def _currency(stated: str | None, ledger: Ledger) -> str:
    """The currency of the ledger's newest price book: runs are counted in it, and a budget in another one
    would stop each of them. Raises ConfigError if another is stated.
    """
    counted = ledger.pricer().table.currency
    if stated is None or stated == counted:
        return counted
    if not re.fullmatch("[A-Z]{3}", stated):
        raise ConfigError("--currency", stated, f"three capital letters: {counted}")
    raise ConfigError("--currency", stated, counted, f"the ledger's newest price book is in {counted}")


def _show(statuses: list[BudgetStatus], as_json: bool) -> None:
    rows = [status.to_dict() for status in statuses]
    if as_json:
        print_json(rows)
        return
    lines = [
        (
            one.budget.name,
            row["last"],
            *(f"{value.normalize():f}" for value in _money(one)),
            one.budget.currency,
        )
        for one, row in zip(statuses, rows, strict=True)
    ]
    columns = ("name", "until", "limit", "settled", "pending", "available", "currency")
    print_table(columns, lines, "there is no budget")


def _money(status: BudgetStatus) -> tuple[Decimal, ...]:
    return (status.budget.limit, status.settled, status.pending, status.available)
