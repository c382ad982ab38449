"""`orchestrator cost watch`: account for a Ray cluster that knows nothing of the ledger."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import RUNS, Json, LedgerUrl, OutputDir, open_ledger, refusing
from orchestrator.cli.output import print_json

if TYPE_CHECKING:
    from orchestrator.ledger.events import Event
    from orchestrator.ledger.ray_watch import Watch


def watch(
    address: Annotated[
        str, typer.Option("--address", help="auto, HOST:PORT, or http://HOST:PORT of the dashboard")
    ] = "auto",
    every: Annotated[float, typer.Option("--every", min=0.1, help="seconds between two looks")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="look once")] = False,
    gpu_sku: Annotated[str, typer.Option("--gpu-sku", help="the price book's name of the GPUs")] = "gpu",
    cpu_sku: Annotated[str, typer.Option("--cpu-sku", help="and of a CPU")] = "cpu-slot",
    organisation: Annotated[str, typer.Option("--organisation", help="of jobs that name none")] = "",
    cost_centre: Annotated[str, typer.Option("--cost-centre", help="of jobs that name none")] = "",
    team: Annotated[str, typer.Option("--team", help="of jobs that name none")] = "",
    project: Annotated[str, typer.Option("--project", help="of jobs that name none")] = "",
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Account for the actors and placement groups of a Ray cluster until Ctrl-C. What a job's metadata says
    (team, project, cost_centre, ...) labels it.
    """
    from orchestrator.ledger.errors import LedgerUnavailableError
    from orchestrator.ledger.labels import Labels
    from orchestrator.ledger.ray_state import look
    from orchestrator.ledger.ray_watch import Watch, WatchNames
    from orchestrator.ledger.wrap import Spool
    from orchestrator.training.cluster.dashboard import dashboard_url

    labels = Labels(organisation=organisation, cost_centre=cost_centre, team=team, project=project)
    names = WatchNames(gpu_sku, cpu_sku, labels)
    with refusing():
        url = dashboard_url(address)
        snapshot = look(url)
    spool_file = output_dir / f"ray-{snapshot.cluster}" / "ledger" / "watch.jsonl"
    watching = Watch(names, _earlier(spool_file))
    with Spool(spool_file) as spool:
        while True:
            now = time.time_ns()
            events = watching.observe(snapshot, now)
            spool.emit(*events)
            _ship(ledger, output_dir, len(events), watching, as_json)
            if once:
                return
            time.sleep(every)
            try:
                snapshot = look(url)
            except LedgerUnavailableError as error:
                typer.echo(f"{error}; looking again in {every:g} s", err=True)


def _earlier(spool_file: Path) -> list[Event]:
    """What a watcher before this one spooled."""
    from orchestrator.ledger.events import event_from_json

    if not spool_file.exists():
        return []
    lines = spool_file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [event_from_json(line) for line in lines if line.endswith("\n")]


def _ship(url: str | None, output_dir: Path, spooled: int, watching: Watch, as_json: bool) -> None:
    """Ship the spool; what can't be shipped now is shipped at the next look."""
    from orchestrator.ledger.errors import LedgerError

    try:
        open_ledger(url, output_dir)
    except LedgerError as error:
        typer.echo(f"spooled, not shipped: {error}", err=True)
    if as_json:
        print_json({"events": spooled, "held": watching.held})
    else:
        typer.echo(f"{time.strftime('%H:%M:%S')} {watching.held} held, {spooled} events")
