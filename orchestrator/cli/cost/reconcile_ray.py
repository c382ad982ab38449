"""`orchestrator cost reconcile-ray`: compares Ray's actor events with the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.cost.options import Books, parse_time, with_books
from orchestrator.cli.cost.reconcile import Note, Out, SignOff, accepted, require_file
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say

if TYPE_CHECKING:
    from orchestrator.ledger.ray_findings import RayReconciliation

SECOND_NS = 1_000_000_000


@with_books()
def reconcile_ray(
    books: Books,
    events: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR", help="Ray's export events, or JSON lines of the events that it posts"
        ),
    ],
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="maximum difference of two times in seconds")
    ] = 60.0,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="end of the complete events (UTC; default: the last event)"
        ),
    ] = None,
    sign_off: SignOff = None,
    note: Note = "",
    out: Out = None,
) -> None:
    """Compare the lifetimes of actors according to Ray with leases and work."""
    from orchestrator.ledger.ray_events import read_ray_events

    require_file(sign_off, out)
    recording = read_ray_events(events)
    complete_until = parse_time("--until", until)
    result = books.ledger.reconcile_ray(recording, int(tolerance * SECOND_NS), complete_until)
    document = accepted(result.to_dict(), len(result.findings), sign_off, note, out)
    if books.as_json:
        print_json(document)
    else:
        print_ray_reconciliation(result)


def print_ray_reconciliation(result: RayReconciliation) -> None:
    """Print the findings and what was compared."""
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
    columns = ("actor, incarnation", "node", "finding", "seconds", "detail")
    print_table(columns, rows, "Ray and the ledger agree.")
    say(
        f"{result.lives} incarnations of actors with resources, {result.leases} leases,"
        f" {result.spans} spans of work"
    )
    precision = "nanosecond" if result.precision_ns == 1 else "second"
    say(
        f"Ray's events (precision: one {precision}): {_time(result.first_ns)} to {_time(result.until_ns)};"
        f" tolerance {result.tolerance_ns / SECOND_NS:g} s"
    )


def _time(at_ns: int | None) -> str:
    if at_ns is None:
        return "-"
    whole, rest = divmod(at_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}"
