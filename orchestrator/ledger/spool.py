"""From spool files to the journal: whole lines only, once, in order; what is no event is quarantined with its
file and line.

A spool file grows by appends and is never rewritten. The place that was read to is stored in the same
transaction as the events, so that a shipper killed at any point repeats nothing and loses nothing.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.ledger.errors import MalformedEventError
from orchestrator.ledger.events import Event, event_from_json
from orchestrator.ledger.journal import BadLine, Cursor, Journal

BATCH_BYTES = 4 << 20
"""What is read and committed at once: some 15,000 events."""


def ship(directory: Path, journal: Journal) -> int:
    """Send what is new in the `*.jsonl` files of `directory` to the journal.

    Returns how many events were new; 0 if there is no such directory.
    """
    return sum(ship_file(path, journal) for path in sorted(directory.glob("*.jsonl")))


def ship_file(path: Path, journal: Journal) -> int:
    """Send what is new in one spool file to the journal. Returns how many events were new."""
    name = str(path.resolve())
    cursor = journal.cursor(name)
    if path.stat().st_size <= cursor.offset:
        return 0
    new = 0
    with path.open("rb") as file:
        file.seek(cursor.offset)
        while True:
            lines = file.readlines(BATCH_BYTES)
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()  # a line that is still being written
            if not lines:
                return new
            events, texts, bad_lines = _parse(lines, path, cursor.lines)
            cursor = Cursor(name, cursor.offset + sum(map(len, lines)), cursor.lines + len(lines))
            new += journal.append(events, bad_lines, cursor, texts)


def _parse(lines: list[bytes], path: Path, before: int) -> tuple[list[Event], list[str], list[BadLine]]:
    events: list[Event] = []
    texts: list[str] = []
    bad_lines: list[BadLine] = []
    for number, line in enumerate(lines, before + 1):
        try:
            text = line[:-1].decode()
            event = event_from_json(text)
        except (UnicodeDecodeError, MalformedEventError) as error:
            shown = line[:-1].decode("utf-8", errors="replace").replace("\0", "\ufffd")
            bad_lines.append(BadLine(f"{path}:{number}", str(error), shown))
        else:
            events.append(event)
            texts.append(text)
    return events, texts, bad_lines
