"""`orchestrator cost headline`: what a paper would print beside what it took."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import (
    RUNS,
    AsOf,
    Json,
    LedgerUrl,
    OutputDir,
    PriceBookName,
    moment,
    open_ledger,
    refusing,
    resolve_run,
)
from orchestrator.cli.output import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.ledger.headline import Headline


def headline(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="a pipeline, or a single run")],
    reconciled: Annotated[
        Path | None,
        typer.Option("--reconciled", help="what cost reconcile wrote: adds the bill's unexplained share"),
    ] = None,
    as_of: AsOf = None,
    places: Annotated[int, typer.Option("--places", min=0, max=12, help="decimals of amounts")] = 6,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """What a paper would print (the final runs at the rental price) beside everything that it took."""
    from orchestrator.ledger import headline as accounts

    with refusing():
        known_at = moment(as_of)
        book = open_ledger(ledger, output_dir, price_book, known_at)
        name = resolve_run(book, output_dir, pipeline)
        unexplained = None
        if reconciled is not None:
            from orchestrator.ledger.reconcile import unexplained_of

            unexplained = unexplained_of(book, name, reconciled)
        account = accounts.headline(book, name, unexplained, known_at, places)
    origins = started_from(output_dir, [share.run for share in account.runs])
    if as_json:
        print_json(account.to_dict(origins))
    else:
        print_headline(account, origins)


def started_from(output_dir: Path, runs: Iterable[str]) -> dict[str, str]:
    """For each run whose directory is here, the run whose model it started from, as its manifest says; and
    where that one started, back to a model that no run here made.
    """
    origins: dict[str, str] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        try:
            manifest = json.loads((output_dir / run / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # imported, or made elsewhere: its lineage is not known here
        path = (manifest.get("model") or {}).get("path")
        if path is None or run in origins:
            continue
        made_by = Path(path).parent
        if made_by.resolve().parent == output_dir.resolve():
            origins[run] = made_by.name
            waiting.append(made_by.name)
        else:
            origins[run] = str(path)
    return origins


def print_headline(account: Headline, origins: dict[str, str]) -> None:
    """Two totals, the lines that they are made of, and where the model comes from."""
    from orchestrator.ledger.headline import FINAL, RECORDED

    rows = [
        (
            line.stage,
            line.purpose if line.kind == "work" else f"{line.purpose}, {line.kind}",
            line.state.replace("_", " "),
            _number(line.accelerator_hours),
            _number(line.amount),
        )
        for line in account.lines
    ]
    totals = [
        (name, "", "", _number(total.accelerator_hours), _number(total.amount))
        for name, total in ((f"headline ({FINAL})", account.headline), ("full", account.full))
    ]
    columns = ("stage", "purpose", "state", "accelerator-hours", account.currency)
    print_table(columns, rows, "", totals)
    for line in account.lines:
        if line.state != RECORDED:
            name = line.stage or line.purpose or "the bill"
            typer.echo(f"{name}: {line.state.replace('_', ' ')}: {line.reason}")
    for run, origin in origins.items():
        typer.echo(f"{run} started from {origin}")
    for reason in account.unpriced:
        typer.echo(f"no price: {reason}", err=True)


def _number(value: Decimal | None) -> str:
    """Thousands apart, without zeros that say nothing; a dash for what is not known."""
    if value is None:
        return "-"
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
