"""`orchestrator cost wrap`: accounts for any command."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.cost.options import Books, with_books
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError


@with_books(json=False)
def wrap(
    books: Books,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="the command and its arguments")],
    organisation: Annotated[str, typer.Option("--organisation")] = "",
    cost_centre: Annotated[str, typer.Option("--cost-centre")] = "",
    team: Annotated[str, typer.Option("--team")] = "",
    project: Annotated[str, typer.Option("--project")] = "",
    pipeline: Annotated[str, typer.Option("--pipeline")] = "",
    stage: Annotated[str, typer.Option("--stage")] = "",
    purpose: Annotated[
        str, typer.Option("--purpose", help="if the command succeeds; otherwise it is failed")
    ] = "unstated",
    run_id: Annotated[str | None, typer.Option("--run-id", help="id of the run (default: generated)")] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="GPUs held (default: CUDA_VISIBLE_DEVICES)")
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", min=1, help="CPUs held, if there are no GPUs (default: the CPUs it may use)"),
    ] = None,
    sku: Annotated[str, typer.Option("--sku", help="in the price book (default: gpu, or cpu-slot)")] = "",
    node: Annotated[
        str, typer.Option("--node", help="name of this machine on the bill (default: its host name)")
    ] = "",
    every: Annotated[float, typer.Option("--every", min=0.05, help="seconds between heartbeats")] = 30.0,
) -> int:
    """Run a command, book the devices that it holds, and exit with its exit code."""
    from orchestrator.ledger import wrap as wrapping
    from orchestrator.ledger.imports.statements import PURPOSES, UNSTATED
    from orchestrator.ledger.labels import Labels
    from orchestrator.ledger.power import NvmlMeter

    if purpose not in (*PURPOSES, UNSTATED):
        raise ConfigError("--purpose", purpose, ", ".join((*PURPOSES, UNSTATED)))
    name = run_id or f"wrap-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ConfigError("--run-id", name, "letters, digits, dots, dashes and underscores")
    folder = books.output_dir / name / "ledger"
    if folder.exists():
        raise ConfigError("--run-id", name, "an id that no run in the output directory has")
    program = Path(command[0]).name
    labels = Labels(organisation, cost_centre, team, project, pipeline, program, stage, purpose)
    held = wrapping.held_by(os.environ, gpus, cpus, sku, node or platform.node())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    meter = NvmlMeter.of(visible, held.count) if held.resource == "gpu" else None
    code = wrapping.run(command, name, labels, held, folder / "wrap.jsonl", every, time.time_ns, meter)
    _print_cost(books, name)
    return code


def _print_cost(books: Books, name: str) -> None:
    """Ship the spool and print the cost. If that fails, any later `cost` command ships it."""
    from orchestrator.ledger.errors import LedgerError

    try:
        report = books.ledger.report(name)
    except LedgerError as error:
        say(f"{name}: spooled, not shipped: {error}", err=True)
        return
    unpriced = f" (no price: {report.unpriced[0]})" if report.unpriced else ""
    hours = f"{report.accelerator_hours:f} accelerator-hours"
    say(f"{name}: {hours}, {report.amount:f} {report.currency}{unpriced}", err=True)
