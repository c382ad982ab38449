"""The processes that the crash tests kill: `emit SPOOL NAME` is an actor, `ship SPOOL URL` the controller's
shipper.

Each says on its standard output what it has been promised: an actor the id of each event that its sink
accepted, a shipper that it is under way. A line that was said before a SIGKILL is a promise that must be
kept.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path


def emit(spool: Path, name: str) -> None:
    from orchestrator.training.usage import Activity, Role, SpanRecorded, SpoolSink

    sink = SpoolSink(spool / f"{name}-{os.getpid()}.jsonl")
    for number in itertools.count():
        event_id = f"{name}-{os.getpid()}-{number}"
        start = number * 1000
        sink.emit(
            SpanRecorded(event_id, "lease", name, Role.ROLLOUT, Activity.GENERATE, start, start + 500, 0, 1)
        )
        os.write(1, f"{event_id}\n".encode())
        time.sleep(0.0002)


def ship(spool: Path, url: str) -> None:
    from orchestrator.ledger.errors import LedgerUnavailableError
    from orchestrator.ledger.spool import ship as ship_spool
    from orchestrator.ledger.sql.engine import open_engine
    from orchestrator.ledger.sql.journal import SqlJournal

    journal = SqlJournal(open_engine(url), time.time_ns)
    os.write(1, b"under way\n")
    while True:
        try:
            ship_spool(spool, journal)
        except LedgerUnavailableError:
            time.sleep(0.05)


if __name__ == "__main__":
    mode, folder, argument = sys.argv[1:]
    {"emit": emit, "ship": ship}[mode](Path(folder), argument)
