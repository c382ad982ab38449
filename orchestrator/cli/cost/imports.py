"""`orchestrator cost import ...`: usage that somebody else accounts for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import RUNS, Json, LedgerUrl, OutputDir, open_ledger, refusing
from orchestrator.cli.output import print_json
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.imports.statements import Lines
    from orchestrator.ledger.labels import Labels

app = typer.Typer(
    help="Take over usage that another system accounts for; what was taken before is passed over.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Organisation = Annotated[str, typer.Option("--organisation", help="of the imported runs")]
CostCentre = Annotated[str, typer.Option("--cost-centre", help="of the imported runs")]
Team = Annotated[str, typer.Option("--team", help="where the source names none")]
Project = Annotated[str, typer.Option("--project", help="where the source names none")]
Pipeline = Annotated[str, typer.Option("--pipeline", help="of the imported runs")]
Purpose = Annotated[str, typer.Option("--purpose", help="final, ablation, ...; of runs that did not fail")]


@app.command("csv")
def import_csv(
    file: Annotated[
        Path, typer.Argument(help="an account: docs/how-to/adopt-the-ledger.md says its columns")
    ],
    day: Annotated[
        str | None, typer.Option("--day", help="when usage without a date counts (default: today)")
    ] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> int:
    """Take over an account: one line a stage, in accelerator-hours or from start to end, priced or not."""
    from orchestrator.ledger.imports import csv

    undated = _undated(day)
    with refusing():
        return _take(csv.read(file), undated, ledger, output_dir, as_json)


@app.command("slurm")
def import_slurm(
    file: Annotated[Path, typer.Argument(help="what sacct --parsable2 printed, with its header")],
    skus: Annotated[
        list[str] | None,
        typer.Option(
            "--sku",
            metavar="TYPE=SKU",
            help="the SKU of a GPU type; of `gpu` or `cpu` where there is no type",
        ),
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="that sacct wrote times in")] = "UTC",
    organisation: Organisation = "",
    cost_centre: CostCentre = "",
    team: Team = "",
    project: Project = "",
    pipeline: Pipeline = "",
    purpose: Purpose = "",
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> int:
    """Take over the jobs of a Slurm cluster that have ended: their GPUs, or their CPUs."""
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
    with refusing():
        return _take(slurm.read(file, names), time.time_ns(), ledger, output_dir, as_json)


@app.command("mlflow")
def import_mlflow(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="http://HOST:PORT, sqlite:///FILE, or JSON of runs/search (or MLFLOW_TRACKING_URI)",
        ),
    ] = None,
    sku: Annotated[str, typer.Option("--sku", help="the price book's name of their GPUs")] = "gpu",
    count: Annotated[
        int, typer.Option("--count", min=0, help="what a run without GPU metrics held (0: not counted)")
    ] = 0,
    organisation: Organisation = "",
    cost_centre: CostCentre = "",
    team: Team = "",
    project: Project = "",
    pipeline: Pipeline = "",
    purpose: Purpose = "",
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> int:
    """Take over runs that other tools logged to MLflow with system metrics."""
    from orchestrator.ledger.imports import mlflow

    where = source or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not where:
        raise ConfigError("SOURCE", "nothing", "an MLflow server, database or file", "or MLFLOW_TRACKING_URI")
    labels = _labels(organisation, cost_centre, team, project, pipeline, purpose)
    with refusing():
        lines = mlflow.read(where, mlflow.MlflowNames(labels, sku, count))
        return _take(lines, time.time_ns(), ledger, output_dir, as_json)


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


def _take(lines: Lines, undated_ns: int, url: str | None, output_dir: Path, as_json: bool) -> int:
    """Book what was read and say what became of it. The exit code: 2 if something was refused."""
    from orchestrator.ledger.imports.statements import take

    done = take(open_ledger(url, output_dir), lines, undated_ns)
    first = done.refused[0] if done.refused else None
    if as_json:
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
        typer.echo(f"{done.new} new, {done.known} known, {len(done.refused)} refused")
        for text in (*done.waiting, *done.passed_over):
            typer.echo(f"not counted: {text}", err=True)
        for error in done.refused:
            typer.echo(f"refused: {error}", err=True)
    return 0 if first is None else 2
