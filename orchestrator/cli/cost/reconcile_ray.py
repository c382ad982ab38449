"""`orchestrator cost reconcile-ray`: Ray's own events of its actors against the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import RUNS, Json, LedgerUrl, OutputDir, open_ledger, refusing
from orchestrator.cli.cost.reconcile import Note, Out, SignOff, accepted, require_file
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.ray_findings import RayReconciliation

SECOND_NS = 1_000_000_000


def reconcile_ray(
    events: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER", help="Ray's export events, or JSON lines of the events that it posts"
        ),
    ],
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="seconds that two moments may be apart")
    ] = 60.0,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="the events are complete until then (UTC; default: the last one)"
        ),
    ] = None,
    sign_off: SignOff = None,
    note: Note = "",
    out: Out = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> None:
    """Compare the lives of actors, as Ray tells them, with leases and work: when, where, how they ended."""
    from orchestrator.ledger.ray_events import read_ray_events

    require_file(sign_off, out)
    with refusing():
        recording = read_ray_events(events)
        book = open_ledger(ledger, output_dir)
        result = book.reconcile_ray(recording, int(tolerance * SECOND_NS), _moment(until))
    document = accepted(result.to_dict(), len(result.findings), sign_off, note, out)
    if as_json:
        print_json(document)
    else:
        print_ray_reconciliation(result)


def print_ray_reconciliation(result: RayReconciliation) -> None:
    """Findings, then what was compared."""
    rows = [
        (
            f"{found.actor} {found.actor_id[:8]}/{found.life}",
            found.node[:12],
            found.kind.replace("_", " "),
            f"{found.ns / SECOND_NS:.3f}",
            f"{found.detail}; Ray {_time(found.ray_ns)}, ledger {_time(found.ledger_ns)}",
        )
        for found in result.findings
    ]
    columns = ("actor, life", "node", "finding", "seconds", "detail")
    print_table(columns, rows, "Ray and ledger agree")
    typer.echo(
        f"{result.lives} lives of actors that hold something, {result.leases} leases,"
        f" {result.spans} pieces of work"
    )
    precision = "nanosecond" if result.precision_ns == 1 else "second"
    typer.echo(
        f"Ray's events, to the {precision}: {_time(result.first_ns)} to {_time(result.until_ns)};"
        f" tolerance {result.tolerance_ns / SECOND_NS:g} s"
    )


def _time(at_ns: int | None) -> str:
    if at_ns is None:
        return "-"
    whole, rest = divmod(at_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}"


def _moment(text: str | None) -> int | None:
    from orchestrator.ledger.calendar import parse_moment

    try:
        return None if text is None else parse_moment(text)
    except ValueError as error:
        raise ConfigError("--until", str(text), "YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, UTC") from error
