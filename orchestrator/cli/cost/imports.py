"""`orchestrator cost import ...`: usage from other accounting systems."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, with_books
from orchestrator.cli.output import print_json
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.imports.statements import Lines
    from orchestrator.ledger.labels import Labels

app = typer.Typer(
    help="Import usage from other accounting systems. Lines that were imported before are skipped.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Organisation = Annotated[str, typer.Option("--organisation", help="label of the imported runs")]
CostCentre = Annotated[str, typer.Option("--cost-centre", help="label of the imported runs")]
Team = Annotated[str, typer.Option("--team", help="if the source has none")]
Project = Annotated[str, typer.Option("--project", help="if the source has none")]
Pipeline = Annotated[str, typer.Option("--pipeline", help="label of the imported runs")]
Purpose = Annotated[str, typer.Option("--purpose", help="of runs that did not fail: final, ablation, ...")]


@app.command("csv")
@with_books()
def import_csv(
    books: Books,
    file: Annotated[
        Path, typer.Argument(help="a CSV file with the columns in docs/how-to/adopt-the-ledger.md")
    ],
    day: Annotated[
        str | None, typer.Option("--day", help="day of usage without a date (default: today)")
    ] = None,
) -> int:
    """Import a CSV file: one line per stage, in accelerator-hours or from start to end, priced or not."""
    from orchestrator.ledger.imports import csv

    undated = _undated(day)
    return _take(books, csv.read(file), undated)


@app.command("slurm")
@with_books()
def import_slurm(
    books: Books,
    file: Annotated[Path, typer.Argument(help="output of sacct --parsable2, with its header")],
    skus: Annotated[
        list[str] | None,
        typer.Option(
            "--sku",
            metavar="TYPE=SKU",
            help="SKU of a GPU type; use the types `gpu` and `cpu` for jobs that name none",
        ),
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="time zone of the output")] = "UTC",
    organisation: Organisation = "",
    cost_centre: CostCentre = "",
    team: Team = "",
    project: Project = "",
    pipeline: Pipeline = "",
    purpose: Purpose = "",
) -> int:
    """Import finished jobs of a Slurm cluster: their GPUs, or their CPUs if they have none."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from orchestrator.ledger.imports import slurm

    pairs = [text.partition("=") for text in skus or []]
    for text, (kind, _, sku) in zip(skus or [], pairs, strict=True):
        if not kind or not sku:
            raise ConfigError("--sku", text, "TYPE=SKU", "h100=p5.48xlarge")
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError("--timezone", timezone, "a name such as Europe/Zurich") from error
    labels = _labels(organisation, cost_centre, team, project, pipeline, purpose)
    names = slurm.SlurmNames(labels, {kind: sku for kind, _, sku in pairs}, zone)
    return _take(books, slurm.read(file, names), time.time_ns())


@app.command("mlflow")
@with_books()
def import_mlflow(
    books: Books,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="http://HOST:PORT, sqlite:///FILE, or JSON of runs/search (default: MLFLOW_TRACKING_URI)",
        ),
    ] = None,
    sku: Annotated[str, typer.Option("--sku", help="SKU of the GPUs in the price book")] = "gpu",
    count: Annotated[
        int, typer.Option("--count", min=0, help="GPUs of a run without GPU metrics (0: skip such runs)")
    ] = 0,
    organisation: Organisation = "",
    cost_centre: CostCentre = "",
    team: Team = "",
    project: Project = "",
    pipeline: Pipeline = "",
    purpose: Purpose = "",
) -> int:
    """Import runs that other tools logged to MLflow with system metrics."""
    from orchestrator.ledger.imports import mlflow

    where = source or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not where:
        raise ConfigError("SOURCE", "nothing", "an MLflow server, database or file", "or MLFLOW_TRACKING_URI")
    labels = _labels(organisation, cost_centre, team, project, pipeline, purpose)
    return _take(books, mlflow.read(where, mlflow.MlflowNames(labels, sku, count)), time.time_ns())


def _labels(
    organisation: str, cost_centre: str, team: str, project: str, pipeline: str, purpose: str
) -> Labels:
    from orchestrator.ledger.imports.statements import PURPOSES
    from orchestrator.ledger.labels import Labels

    if purpose and purpose not in PURPOSES:
        raise ConfigError("--purpose", purpose, ", ".join(PURPOSES))
    return Labels(organisation, cost_centre, team, project, pipeline, "", "", purpose)


def _undated(day: str | None) -> int:
    from orchestrator.ledger.calendar import DAY_NS, parse_period

    if day is None:
        return time.time_ns() // DAY_NS * DAY_NS
    try:
        return parse_period(day)[0] * DAY_NS
    except ValueError as error:
        raise ConfigError("--day", day, "YYYY-MM-DD") from error


def _take(books: Books, lines: Lines, undated_ns: int) -> int:
    """Book the lines and print the result. Returns the exit code: 2 if a line was refused."""
    from orchestrator.ledger.imports.statements import take

    done = take(books.ledger, lines, undated_ns)
    first = done.refused[0] if done.refused else None
    if books.as_json:
        rows = [
            {"row": error.key, "value": error.value, "allowed": error.allowed, "hint": error.hint}
            for error in done.refused
        ]
        error = first and {
            "error": str(first),
            "key": first.key,
            "value": first.value,
            "allowed": first.allowed,
            "hint": first.hint,
        }
        counts = {"new": done.new, "known": done.known, "refused": rows}
        print_json({**counts, "waiting": done.waiting, "passed_over": done.passed_over, **(error or {})})
    else:
        say(f"{done.new} new, {done.known} known, {len(done.refused)} refused")
        for text in (*done.waiting, *done.passed_over):
            say(f"not counted: {text}", err=True)
        for error in done.refused:
            say(f"refused: {error}", err=True)
    return 0 if first is None else 2
