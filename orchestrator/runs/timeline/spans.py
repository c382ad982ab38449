"""Reads the usage spans that the actors of a run have spooled: one file for each actor process.

A file may be growing, cut short or damaged. Only whole lines count, lines that are not spans are skipped, and
those that cannot be parsed are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE_NAME = re.compile(r"(\d+)-.+\.jsonl")
"""`<attempt>-<actor>-<incarnation>.jsonl`, and `<attempt>-controller.jsonl`."""
CONTROLLER = "-controller.jsonl"
LEASES_BYTES = 1 << 20
"""How much of a controller's file is read. It begins with the leases; after them come only heartbeats."""
RECENT_BYTES = 256 << 10
"""How much of each actor's file is read for a quick look: some 900 spans, the newest ones."""

ROLLOUT, REWARD, LEARNER = "rollout", "reward", "learner"
GENERATE, EVALUATE, SCORE, UPDATE, SYNC = "generate", "evaluate", "score", "update", "sync"


@dataclass(frozen=True, slots=True)
class ActorSpan:
    """`actor` did `activity` from `start_ns` to `end_ns`, for learner step `step` (counted from 0; see
    docs/reference/usage-events.md).
    """

    actor: str
    role: str
    activity: str
    start_ns: int
    end_ns: int
    step: int
    tokens: int = 0
    attempt: int = 1
    node: str = ""
    """The host whose clock measured it; empty if the lease is unknown."""
    leases: tuple[str, ...] = ()
    """One for each accelerator of the actor's slot."""


@dataclass(frozen=True, slots=True)
class Spool:
    """All spans, ordered by start, and the number of lines that could not be parsed."""

    spans: tuple[ActorSpan, ...]
    damaged: int


def read_spool(folder: Path, since_ns: int = 0, recent_only: bool = False) -> Spool:
    """Read the spans in `folder` that end after `since_ns`. A missing folder has none.

    `recent_only` reads only the last RECENT_BYTES of each file, which takes milliseconds for any run.
    """
    nodes: dict[str, str] = {}
    found: dict[tuple[object, ...], ActorSpan] = {}
    damaged = 0
    paths = [path for path in sorted(folder.glob("*.jsonl")) if FILE_NAME.fullmatch(path.name)]
    for path in paths:
        if path.name.endswith(CONTROLLER):
            nodes.update(_nodes(path))
    for path in paths:
        if path.name.endswith(CONTROLLER):
            continue
        attempt = int(path.name.partition("-")[0])
        for line in _tail(path, RECENT_BYTES if recent_only else None):
            if b'"span_recorded"' not in line and line.startswith(b"{") and line.endswith(b"}"):
                continue
            span = _span(line, attempt)
            if span is None:
                damaged += 1
            elif span.end_ns > since_ns:
                _add(found, span, nodes)
    return Spool(tuple(sorted(found.values(), key=lambda span: (span.start_ns, span.actor))), damaged)


def _add(found: dict[tuple[object, ...], ActorSpan], span: ActorSpan, nodes: dict[str, str]) -> None:
    """An actor with several accelerators spools each span once for each lease: merge them."""
    key = (span.attempt, span.actor, span.activity, span.start_ns, span.end_ns)
    known = found.get(key)
    if known is None:
        found[key] = replace(span, node=nodes.get(span.leases[0], ""))
    elif span.leases[0] not in known.leases:
        found[key] = replace(known, leases=(*known.leases, *span.leases))


def _span(line: bytes, attempt: int) -> ActorSpan | None:
    fields = _object(line)
    if fields is None:
        return None
    try:
        texts = [fields[name] for name in ("actor", "role", "activity", "lease_id")]
        start_ns, end_ns = fields["start_ns"], fields["end_ns"]
        numbers = [start_ns, end_ns, fields["step"], fields["tokens"]]
    except KeyError:
        return None
    if not all(isinstance(text, str) for text in texts) or not all(type(each) is int for each in numbers):
        return None
    if end_ns < start_ns:
        return None
    actor, role, activity, lease = texts
    return ActorSpan(
        actor, role, activity, start_ns, end_ns, fields["step"], fields["tokens"], attempt, leases=(lease,)
    )


def _nodes(path: Path) -> dict[str, str]:
    """The host of each lease in the spool of a controller."""
    with path.open("rb") as file:
        lines = file.read(LEASES_BYTES).split(b"\n")[:-1]
    opened = [_object(line) for line in lines if b'"lease_opened"' in line]
    return {str(fields.get("lease_id")): str(fields.get("node", "")) for fields in opened if fields}


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _tail(path: Path, newest_bytes: int | None) -> Iterator[bytes]:
    """The whole lines of a file, or of its last `newest_bytes`, without their newlines."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        skipped = newest_bytes is not None and size > newest_bytes
        file.seek(size - newest_bytes if newest_bytes is not None and skipped else 0)
        if skipped:
            file.readline()  # most likely the rest of a line
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]
