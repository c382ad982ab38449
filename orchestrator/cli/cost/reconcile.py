"""`orchestrator cost reconcile`: compares a cloud bill with the ledger."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.cost.options import Books, require_writable, with_books, writing
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.reconcile import Reconciliation

SignOff = Annotated[
    str | None,
    typer.Option("--sign-off", metavar="NAME", help="who accepts the result with its differences"),
]
Note = Annotated[str, typer.Option("--note", help="the reason for accepting differences")]
Out = Annotated[Path | None, typer.Option("--out", help="write the result to this JSON file")]


@with_books(prices=True, as_of=True)
def reconcile(
    books: Books,
    bill: Annotated[
        str,
        typer.Option(
            "--cur",
            metavar="PATH|s3://...",
            help="Parquet of a CUR 2.0 or FOCUS export: a file or a directory",
        ),
    ],
    nodes: Annotated[
        Path | None,
        typer.Option("--nodes", help="CSV with lines node,resource: the name of each node on the bill"),
    ] = None,
    hours_tolerance: Annotated[
        str, typer.Option("--hours-tolerance", help="hours per accelerator, day and resource")
    ] = "0.1",
    price_tolerance: Annotated[
        str, typer.Option("--price-tolerance", help="relative difference of prices")
    ] = "0.005",
    sign_off: SignOff = None,
    note: Note = "",
    out: Out = None,
) -> None:
    """Compare a bill with the leases per day and resource, and list the differences."""
    from orchestrator.ledger import bill as bills
    from orchestrator.ledger import reconcile as reconciling

    tolerances = reconciling.Tolerances(
        _share("--hours-tolerance", hours_tolerance), _share("--price-tolerance", price_tolerance)
    )
    require_file(sign_off, out)
    names = {} if nodes is None else dict(reconciling.read_nodes(nodes))
    read = bills.read_bill(bill)
    known_at = books.ledger.moment(books.as_of_ns or time.time_ns())
    result = reconciling.reconcile(books.ledger, read, tolerances, names, known_at)
    document = accepted({**result.to_dict(), "as_of_ns": known_at}, len(result.findings), sign_off, note, out)
    if books.as_json:
        print_json(document)
    else:
        print_reconciliation(result)


def require_file(sign_off: str | None, out: Path | None) -> None:
    """Raise ConfigError if a signature has no file or the file cannot be written."""
    if sign_off is not None and out is None:
        raise ConfigError("--sign-off", "no --out", "--out FILE", "a signature needs a file")
    if out is not None:
        require_writable("--out", out)


def accepted(
    document: dict[str, Any], differences: int, sign_off: str | None, note: str, out: Path | None
) -> dict[str, Any]:
    """Sign the result and write it to `out`, if requested.

    Raises ConfigError for differences accepted without a reason, or a file that cannot be written.
    """
    from orchestrator.ledger.calendar import date_of, day_of
    from orchestrator.ledger.reconcile import sign

    if sign_off is not None and differences and not note:
        hint = "say why the differences are accepted"
        raise ConfigError("--note", "nothing", "a reason", f"{differences} differences: {hint}")
    if sign_off is not None:
        document = sign(document, sign_off, date_of(day_of(time.time_ns())).isoformat(), note)
    if out is not None:
        with writing("--out", out):
            out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def print_reconciliation(result: Reconciliation) -> None:
    """Print the findings and the totals of both sides."""
    rows = [
        (found.day, found.resource, found.kind.replace("_", " "), f"{found.amount:,.2f}", found.detail)
        for found in result.findings
    ]
    columns = ("day", "resource", "finding", result.currency, "detail")
    print_table(columns, rows, "The bill and the ledger agree.")
    matched = result.matched
    say(f"{result.bill_kind}, {result.bill_rows} rows, {result.first_day} to {result.last_day}")
    say(f"matched: {matched.resource_days} resource-days, {matched.accelerator_hours:,f} accelerator-hours")
    say(f"billed for instances: {result.billed_amount:,f} {result.currency}")
    say(f"leased:               {result.leased_amount:,f} {result.currency}")
    say(f"billed, unexplained:  {result.unexplained:,f} {result.currency}")
    for currency, amount in result.other.items():
        say(f"other charges:        {amount:,f} {currency}")
    if result.without_node_hours:
        hours, amount = result.without_node_hours, result.without_node_amount
        say(f"leased without a node: {hours:,f} accelerator-hours, {amount:,f} {result.currency}")


def _share(option: str, text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(option, text, "a number of 0 or more") from error
    if value < 0:
        raise ConfigError(option, text, "a number of 0 or more")
    return value
