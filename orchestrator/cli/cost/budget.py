"""`orchestrator cost budget ...`: defines and checks budgets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, days, with_books
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import BudgetStopError, ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.budgets import BudgetStatus
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.variance import Variance

app = typer.Typer(help="Define and check budgets.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("set")
@with_books()
def define(
    books: Books,
    name: Name,
    limit: Annotated[str, typer.Option("--limit", help="amount of money, in --currency")],
    first: Annotated[str, typer.Option("--from", metavar="DAY|MONTH", help="the first day (inclusive)")],
    last: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="DAY|MONTH", help="the last day (default: the end of --from's day or month)"
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option("--scope", metavar="LABEL=VALUE[,...]", help="team=blue,project=x (default: all)")
    ] = "",
    warn_at: Annotated[
        str, typer.Option("--warn-at", metavar="SHARE[,SHARE]", help="shares of the limit")
    ] = "0.5,0.8,0.95",
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="must be the ledger's (the default)")
    ] = None,
) -> None:
    """Define a budget, or change an existing one from now on."""
    from orchestrator.ledger.budgets import Budget
    from orchestrator.ledger.variance import parse_scope

    start, end = days(first, last or first)
    assert start is not None and end is not None
    shares = tuple(_decimal("--warn-at", share) for share in warn_at.split(",") if share)
    money = _currency(currency, books.ledger)
    budget = Budget(name, parse_scope(scope), start, end, _decimal("--limit", limit), money, shares)
    books.ledger.budgets.define(budget)
    _show([books.ledger.budgets.status(name)], books.as_json)


@app.command("list")
@with_books()
def list_budgets(books: Books) -> None:
    """List all budgets: settled, pending (reserved for work in flight), available."""
    _show(books.ledger.budgets.statuses(), books.as_json)


@app.command()
@with_books()
def variance(books: Books) -> None:
    """Compare each budget with the actual costs in its scope so far."""
    found = books.ledger.variances()
    if books.as_json:
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
    print_table(("budget", "limit", "planned so far", "actual", "variance"), rows, "There are no budgets.")
    print_unpriced(found)


def print_unpriced(found: Iterable[Variance]) -> None:
    """Report usage without a price in the scope of a budget on stderr."""
    for one in found:
        for sku, hours in one.unpriced.items():
            say(f"no price: {hours:f} accelerator-hours of {sku} in {one.budget.name}", err=True)


@app.command()
@with_books()
def check(
    books: Books,
    name: Name,
    webhook: Annotated[
        str | None, typer.Option("--webhook", metavar="URL", help="also post each warning here")
    ] = None,
) -> int:
    """Warn about newly crossed thresholds; exit with code 3 if the budget is used up."""
    status = books.ledger.budgets.status(name)
    warn(books.ledger, name, webhook)
    _show([status], books.as_json)
    return BudgetStopError.exit_code if status.available <= 0 else 0


def warn(ledger: Ledger, name: str, webhook: str | None) -> None:
    """Report newly crossed thresholds of a budget on stderr, and post them to a webhook."""
    from orchestrator.launch.budgets import BudgetWarning
    from orchestrator.launch.webhook import post

    if webhook is not None and not webhook.startswith(("https://", "http://")):
        raise ConfigError("--webhook", webhook, "an http or https URL")
    for share in ledger.budgets.warn_once(name):
        warned = BudgetWarning(ledger.budgets.status(name), share)
        say(warned.text, err=True)
        if webhook is not None:
            try:
                post(webhook, warned.to_json())
            except OSError as error:
                say(f"cannot reach the webhook: {error}", err=True)


def _decimal(option: str, text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(option, text, "a decimal number") from error
    if not value.is_finite():
        raise ConfigError(option, text, "a decimal number")
    return value


def _currency(stated: str | None, ledger: Ledger) -> str:
    """The currency of the ledger's newest price book. Raises ConfigError if another currency is requested,
    because runs are priced in the ledger's currency and a budget in another one would stop all of them.
    """
    counted = ledger.prices.pricer().table.currency
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
    print_table(columns, lines, "There are no budgets.")


def _money(status: BudgetStatus) -> tuple[Decimal, ...]:
    return (status.budget.limit, status.settled, status.pending, status.available)
