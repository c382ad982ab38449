"""`orchestrator cost headline`: the headline cost of a pipeline beside its full cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, Places, with_books
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say

if TYPE_CHECKING:
    from orchestrator.ledger.headline import Headline


@with_books(prices=True, as_of=True)
def headline(
    books: Books,
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="a pipeline, or a single run")],
    reconciled: Annotated[
        Path | None,
        typer.Option(
            "--reconciled", help="signed result of cost reconcile: adds the unexplained share of the bill"
        ),
    ] = None,
    places: Places = 6,
) -> None:
    """Report the cost that a paper would state (final runs at the rental price) and the full cost."""
    from orchestrator.ledger import headline as accounts
    from orchestrator.ledger.reconcile import unexplained_of

    name = books.run_id(pipeline)
    unexplained = None if reconciled is None else unexplained_of(books.ledger, name, reconciled)
    account = accounts.headline(books.ledger, name, unexplained, books.as_of_ns, places)
    origins = started_from(books.output_dir, [share.run for share in account.runs])
    if books.as_json:
        print_json(account.to_dict(origins))
    else:
        print_headline(account, origins)


def started_from(output_dir: Path, runs: Iterable[str]) -> dict[str, str]:
    """The run whose model each run started from, according to its manifest, and so on back to a model that no
    run in `output_dir` produced.
    """
    origins: dict[str, str] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        try:
            manifest = json.loads((output_dir / run / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # imported or produced elsewhere, so its lineage is unknown here
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
    """Print both totals, their lines, and the origin of the models."""
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
            say(f"{name}: {line.state.replace('_', ' ')}: {line.reason}")
    for run, origin in origins.items():
        say(f"{run} started from {origin}")
    for reason in account.unpriced:
        say(f"no price: {reason}", err=True)


def _number(value: Decimal | None) -> str:
    """A number with thousands separators and without trailing zeros; a dash if it is unknown."""
    if value is None:
        return "-"
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
