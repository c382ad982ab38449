"""`orchestrator cost waste|units|forecast|trend`: what the figures mean."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.budget import print_unpriced
from orchestrator.cli.cost.options import (
    RUNS,
    Json,
    LedgerUrl,
    OutputDir,
    PriceBookName,
    days,
    open_ledger,
    refusing,
    resolve_run,
)
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import ConfigError, RunNotFoundError
from orchestrator.percent import percent

RunName = Annotated[str, typer.Argument(metavar="RUN", help="a run or a pipeline")]


def waste(
    run: RunName,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """What was paid for without a result: idle, lost, failed, done again, restarted, never trained on."""
    with refusing():
        book = open_ledger(ledger, output_dir, price_book)
        found = book.waste(resolve_run(book, output_dir, run))
    if as_json:
        print_json(found.to_dict())
        return
    rows = [
        (row.kind, f"{row.accelerator_hours:f}", f"{row.amount:f}", percent(row.share)) for row in found.rows
    ]
    rows.append(("total", f"{found.accelerator_hours:f}", f"{found.amount:f}", ""))
    print_table(("kind", "accelerator-hours", found.currency, "share"), rows, "nothing was used")


def units(
    run: RunName,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """What a million tokens, an accepted sample and a point of held-out accuracy cost, idle time included."""
    with refusing():
        book = open_ledger(ledger, output_dir, price_book)
        name = resolve_run(book, output_dir, run)
        found = book.unit_costs(name, measured_units(output_dir, book.runs_of(name)))
        currency = book.pricer().table.currency
    if as_json:
        print_json({"run_id": name, "currency": currency, "units": [one.to_dict() for one in found]})
        return
    rows = [
        (one.unit, f"{float(one.count):,.3f}", "-" if one.amount is None else f"{one.amount:f}")
        for one in found
    ]
    print_table(("unit", "units", f"{currency} each"), rows, "nothing was measured")


def measured_units(output_dir: Path, runs: list[str]) -> dict[str, Fraction]:
    """The units that metrics count, of the runs that have a directory here: accepted samples, accuracy
    gained.

    An accepted sample is a rollout that was graded right.
    """
    from orchestrator.runs.directory import RunDirectory
    from orchestrator.runs.status import progress

    accepted, points = Fraction(0), Fraction(0)
    for run in runs:
        directory = RunDirectory(output_dir / run)
        try:
            directory.record()
        except RunNotFoundError:
            continue
        history = progress(directory, ("rollout/count", "accuracy/train", "accuracy/heldout")).history
        right = dict(history["accuracy/train"])
        accepted += sum(
            (Fraction(count) * Fraction(right.get(step, 0.0)) for step, count in history["rollout/count"]),
            Fraction(0),
        )
        heldout = history["accuracy/heldout"]
        points += 100 * Fraction(heldout[-1][1] - heldout[0][1]) if len(heldout) > 1 else 0
    return {"accepted sample": accepted, "point of held-out accuracy": points}


def forecast(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run; none: each budget, to its last day")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="the run's last step (default: as configured)")
    ] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """What a run will have cost when it is done, or each budget's period when it ends, with an interval."""
    with refusing():
        book = open_ledger(ledger, output_dir, price_book)
        if run is not None:
            name = resolve_run(book, output_dir, run)
            found = book.completion(name, steps or configured_steps(output_dir, name))
            if as_json:
                print_json(found.to_dict())
                return
            amount, left = found.amount, found.seconds
            typer.echo(
                f"{name}: step {found.done} of {found.steps}; {amount.expected} {found.currency} at the end "
                f"({amount.low} to {amount.high}), {left.expected} s from now ({left.low} to {left.high})"
            )
            return
        variances = book.variances()
    if as_json:
        print_json([one.to_dict() for one in variances])
        return
    rows = [
        (
            one.budget.name,
            f"{one.budget.limit:f}",
            f"{one.actual:f}",
            f"{one.variance:+f}",
            "-"
            if one.forecast is None
            else f"{one.forecast.expected} ({one.forecast.low} to {one.forecast.high})",
        )
        for one in variances
    ]
    print_table(("budget", "limit", "actual", "against plan", "at the end"), rows, "there is no budget")
    print_unpriced(variances)


def configured_steps(output_dir: Path, run: str) -> int:
    """The `steps` of a run's config. Raises ConfigError if it has no directory here."""
    import yaml

    path = output_dir / run / "config.yaml"
    if not path.is_file():
        raise ConfigError("--steps", "none", "the run's last step", f"there is no {path} to read it from")
    return int(yaml.safe_load(path.read_text(encoding="utf-8"))["steps"])


def trend(
    every: Annotated[
        str, typer.Option("--every", help="month, posted (the month it counts in) or day")
    ] = "month",
    by: Annotated[str | None, typer.Option("--by", metavar="DIM[,DIM]")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY|MONTH")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY|MONTH")] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    price_book: PriceBookName = None,
    as_json: Json = False,
) -> None:
    """How costs go on from period to period, by any dimensions."""
    from orchestrator.ledger.trend import trend as trend_of

    if every not in ("month", "posted", "day"):
        raise ConfigError("--every", every, "month, posted, day")
    start, end = days(first, last)
    with refusing():
        dimensions = [every, *(part.strip() for part in by.split(","))] if by else [every]
        found = trend_of(open_ledger(ledger, output_dir, price_book).report_by(dimensions, start, end))
    if as_json:
        print_json(found.to_dict())
        return
    rows = [
        (
            row.period,
            *map(str, row.values),
            "no price" if row.amount is None else f"{row.amount:f}",
            "" if row.change is None else f"{row.change:+f}",
        )
        for row in found.rows
    ]
    print_table((every, *found.by, found.currency, "change"), rows, "nothing was used")
