"""`orchestrator cost waste|units|forecast|trend`: waste, unit costs, forecasts and trends."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.budget import print_unpriced
from orchestrator.cli.cost.options import Books, FirstDay, LastDay, RunName, days, dimensions, with_books
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError, RunNotFoundError
from orchestrator.percent import percent


@with_books(prices=True)
def waste(books: Books, run: RunName) -> None:
    """Report cost without a result: idle, lost, failed, repeated, restarted, never trained on."""
    found = books.ledger.waste(books.run_id(run))
    if books.as_json:
        print_json(found.to_dict())
        return
    rows = [
        (row.kind, f"{row.accelerator_hours:f}", f"{row.amount:f}", percent(row.share)) for row in found.rows
    ]
    rows.append(("total", f"{found.accelerator_hours:f}", f"{found.amount:f}", ""))
    print_table(("kind", "accelerator-hours", found.currency, "share"), rows, "There is no usage.")


@with_books(prices=True)
def units(books: Books, run: RunName) -> None:
    """Report the cost, including idle time, of a million tokens, an accepted sample, a point of accuracy."""
    name = books.run_id(run)
    found = books.ledger.unit_costs(name, measured_units(books.output_dir, books.ledger.runs_of(name)))
    currency = books.ledger.prices.pricer().table.currency
    if books.as_json:
        print_json({"run_id": name, "currency": currency, "units": [one.to_dict() for one in found]})
        return
    rows = [
        (one.unit, f"{float(one.count):,.3f}", "-" if one.amount is None else f"{one.amount:f}")
        for one in found
    ]
    print_table(("unit", "units", f"{currency} each"), rows, "Nothing was measured.")


def measured_units(output_dir: Path, runs: list[str]) -> dict[str, Fraction]:
    """Units counted by metrics, of the runs with a directory here: accepted samples and points of accuracy.

    An accepted sample is a rollout that was graded as correct.
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


@with_books(prices=True)
def forecast(
    books: Books,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run (default: each budget, to its last day)")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="the last step of the run (default: as configured)")
    ] = None,
) -> None:
    """Forecast, with an interval, the total cost of a run, or of the period of each budget."""
    if run is not None:
        name = books.run_id(run)
        found = books.ledger.completion(name, steps or configured_steps(books.output_dir, name))
        if books.as_json:
            print_json(found.to_dict())
            return
        amount, left = found.amount, found.seconds
        say(
            f"{name}: step {found.done} of {found.steps}; {amount.expected} {found.currency} at the end "
            f"({amount.low} to {amount.high}), {left.expected} s from now ({left.low} to {left.high})"
        )
        return
    variances = books.ledger.variances()
    if books.as_json:
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
    print_table(("budget", "limit", "actual", "against plan", "at the end"), rows, "There are no budgets.")
    print_unpriced(variances)


def configured_steps(output_dir: Path, run: str) -> int:
    """The `steps` of a run's config. Raises ConfigError if it has no directory here."""
    import yaml

    path = output_dir / run / "config.yaml"
    if not path.is_file():
        raise ConfigError("--steps", "none", "the run's last step", f"{path} does not exist")
    return int(yaml.safe_load(path.read_text(encoding="utf-8"))["steps"])


@with_books(prices=True)
def trend(
    books: Books,
    every: Annotated[
        str, typer.Option("--every", help="month, posted (the month it counts in) or day")
    ] = "month",
    by: Annotated[str | None, typer.Option("--by", metavar="DIM[,DIM]")] = None,
    first: FirstDay = None,
    last: LastDay = None,
) -> None:
    """Report how costs change from period to period, by any dimensions."""
    from orchestrator.ledger.trend import trend as trend_of

    if every not in ("month", "posted", "day"):
        raise ConfigError("--every", every, "month, posted, day")
    start, end = days(first, last)
    groups = [every, *dimensions(by)] if by else [every]
    found = trend_of(books.ledger.report_by(groups, start, end))
    if books.as_json:
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
    print_table((every, *found.by, found.currency, "change"), rows, "There is no usage.")
