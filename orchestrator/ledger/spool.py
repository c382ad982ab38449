"""Ships spool files to the journal: only whole lines, once, in order. Lines that are not events are
quarantined with file and line number.

A spool file only grows by appends. The position up to which it was read is stored in the same transaction as
the events, so that a shipper that is killed at any point neither repeats nor loses anything.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.ledger.errors import MalformedEventError
from orchestrator.ledger.events import Event, SpanLine, event_from_json, span_line
from orchestrator.ledger.journal import BadLine, Cursor, Journal

BATCH_BYTES = 16 << 20
"""Bytes read and committed at once: some 60,000 events."""


def ship(directory: Path, journal: Journal) -> int:
    """Ship what is new in the `*.jsonl` files of `directory` to the journal.

    Returns the number of new events; 0 if the directory does not exist.
    """
    return sum(ship_file(path, journal) for path in sorted(directory.glob("*.jsonl")))


def ship_file(path: Path, journal: Journal) -> int:
    """Ship what is new in one spool file to the journal. Returns the number of new events."""
    name = str(path.resolve())
    cursor = journal.cursor(name)
    new, more = 0, path.stat().st_size > cursor.offset
    while more:
        lines, more = _whole_lines(path, cursor.offset)
        if lines:
            events, texts, bad_lines = _parse(lines, path, cursor.lines)
            cursor = Cursor(name, cursor.offset + sum(map(len, lines)), cursor.lines + len(lines))
            new += journal.append(events, bad_lines, cursor, texts)
    return new


def _whole_lines(path: Path, offset: int) -> tuple[list[bytes], bool]:
    """Whole lines from `offset` on, and whether more may follow.

    They are cut out of a single `read`: `readline` and `readlines` may return a line in two parts if its
    writer finishes it between two of their reads.
    """
    with path.open("rb") as file:
        file.seek(offset)
        read = file.read(BATCH_BYTES)
        if len(read) == BATCH_BYTES and b"\n" not in read:
            read += file.read()  # a line longer than a batch is no event, but must be skipped
    whole = read[: read.rfind(b"\n") + 1]
    return [line + b"\n" for line in whole.split(b"\n")[:-1]], len(read) >= BATCH_BYTES and bool(whole)


def _parse(
    lines: list[bytes], path: Path, before: int
) -> tuple[list[Event | SpanLine], list[str], list[BadLine]]:
    events: list[Event | SpanLine] = []
    texts: list[str] = []
    bad_lines: list[BadLine] = []
    for number, line in enumerate(lines, before + 1):
        try:
            text = line[:-1].decode()
            event = span_line(text) or event_from_json(text)
        except (UnicodeDecodeError, MalformedEventError) as error:
            shown = line[:-1].decode("utf-8", errors="replace").replace("\0", "\ufffd")
            bad_lines.append(BadLine(f"{path}:{number}", str(error), shown))
        else:
            events.append(event)
            texts.append(text)
    return events, texts, bad_lines
