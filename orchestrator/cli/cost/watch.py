"""`orchestrator cost watch`: accounts for a Ray cluster that does not know the ledger."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, with_books
from orchestrator.cli.output import print_json
from orchestrator.cli.terminal import say

if TYPE_CHECKING:
    from orchestrator.ledger.events import Event
    from orchestrator.ledger.ray_watch import Watch


@with_books()
def watch(
    books: Books,
    address: Annotated[
        str, typer.Option("--address", help="auto, HOST:PORT, or http://HOST:PORT of the dashboard")
    ] = "auto",
    every: Annotated[float, typer.Option("--every", min=0.1, help="seconds between snapshots")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="take one snapshot and exit")] = False,
    gpu_sku: Annotated[str, typer.Option("--gpu-sku", help="SKU of the GPUs in the price book")] = "gpu",
    cpu_sku: Annotated[str, typer.Option("--cpu-sku", help="SKU of the CPUs")] = "cpu-slot",
    organisation: Annotated[str, typer.Option("--organisation", help="for jobs that do not name one")] = "",
    cost_centre: Annotated[str, typer.Option("--cost-centre", help="for jobs that do not name one")] = "",
    team: Annotated[str, typer.Option("--team", help="for jobs that do not name one")] = "",
    project: Annotated[str, typer.Option("--project", help="for jobs that do not name one")] = "",
) -> None:
    """Account for the actors and placement groups of a Ray cluster until Ctrl-C.

    The metadata of a job (team, project, cost_centre, ...) becomes its labels.
    """
    from orchestrator.ledger.errors import LedgerUnavailableError
    from orchestrator.ledger.labels import Labels
    from orchestrator.ledger.ray_state import look
    from orchestrator.ledger.ray_watch import Watch, WatchNames
    from orchestrator.ledger.wrap import Spool
    from orchestrator.training.cluster.dashboard import dashboard_url

    labels = Labels(organisation=organisation, cost_centre=cost_centre, team=team, project=project)
    names = WatchNames(gpu_sku, cpu_sku, labels)
    url = dashboard_url(address)
    snapshot = look(url)
    spool_file = books.output_dir / f"ray-{snapshot.cluster}" / "ledger" / "watch.jsonl"
    watching = Watch(names, _earlier(spool_file))
    with Spool(spool_file) as spool:
        while True:
            now = time.time_ns()
            events = watching.observe(snapshot, now)
            spool.emit(*events)
            _ship(books, len(events), watching)
            if once:
                return
            time.sleep(every)
            try:
                snapshot = look(url)
            except LedgerUnavailableError as error:
                say(f"{error}; retrying in {every:g} s", err=True)


def _earlier(spool_file: Path) -> list[Event]:
    """The events of a previous watcher."""
    from orchestrator.ledger.events import event_from_json

    if not spool_file.exists():
        return []
    lines = spool_file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [event_from_json(line) for line in lines if line.endswith("\n")]


def _ship(books: Books, spooled: int, watching: Watch) -> None:
    """Ship the spool. If that fails, the next snapshot tries again."""
    from orchestrator.ledger.errors import LedgerError

    try:
        books.open()
    except LedgerError as error:
        say(f"spooled, not shipped: {error}", err=True)
    if books.as_json:
        print_json({"events": spooled, "held": watching.held})
    else:
        say(f"{time.strftime('%H:%M:%S')} {watching.held} leases open, {spooled} events")
