"""`orchestrator cost prices ...`: lists, adopts and imports prices of accelerator-hours."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.options import (
    Books,
    load_price_book,
    require_writable,
    translated_errors,
    with_books,
    writing,
)
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say

app = typer.Typer(help="Prices of accelerator-hours.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
@with_books(prices=True)
def list_prices(books: Books) -> None:
    """List the prices that reports use, newest book first."""
    rows = books.ledger.prices.rows()
    if books.as_json:
        print_json(rows)
        return
    columns = ("book", "sku", "region", "commitment", "per_hour", "currency", "from", "to")
    print_table(columns, [[str(row[name] or "") for name in columns] for row in rows], "There are no prices.")
    say("The source of each price is in --json.")


@app.command("adopt")
@with_books()
def adopt_prices(
    books: Books,
    book: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="a YAML file, or a name in conf/price_book")
    ],
) -> None:
    """Add a price book to the ledger as the newest one. Closed months keep their prices."""
    read = load_price_book(book)
    adopted = books.ledger.prices.adopt(read)
    if books.as_json:
        print_json({"name": read.name, "adopted": adopted})
    else:
        say(f"{read.name}: {'adopted' if adopted else 'already the newest of its name'}")


@app.command("import-aws")
def import_aws_prices(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the price book to write (.yaml)")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="JSON from `aws pricing get-products` (default: query the AWS API)"
        ),
    ] = None,
    instance_types: Annotated[
        str, typer.Option("--instance-types", metavar="TYPE[,TYPE]", help="for the query")
    ] = "p5.48xlarge,p4d.24xlarge",
    region: Annotated[str, typer.Option("--region", help="for the query")] = "us-east-1",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Write a price book with AWS list prices. Then adopt it: `cost prices adopt FILE`."""
    import yaml

    from orchestrator.ledger.aws_prices import fetch_products, price_book_of, read_products
    from orchestrator.ledger.prices import PriceBook

    require_writable("--out", out)
    with translated_errors():
        products = fetch_products(region, instance_types.split(",")) if file is None else read_products(file)
        content = price_book_of(products, out.stem, datetime.now(UTC).date())
        rows = PriceBook.parse(content).rows()
    with writing("--out", out):
        out.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if as_json:
        print_json(rows)
    else:
        say(f"{out}: {len(rows)} prices")
