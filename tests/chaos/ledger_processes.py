"""The processes that the crash tests kill: `emit SPOOL NAME` is an actor, `ship SPOOL URL` a shipper, and
`control SPOOL URL` the controller of a run, which opens and closes leases, ships, and keeps within a budget.

Each process prints what it has been promised: an actor or controller the id of each event that its sink
accepted, a shipper that it has started. A line printed before a SIGKILL is a promise that must be kept.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any


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


PRICES = {
    "name": "a dollar a second",
    "currency": "USD",
    "region": "x",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": "s",
            "resource": "gpu",
            "region": "x",
            "commitment": "on_demand",
            "amount": "3600",
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "test",
            "retrieved": "2026-01-01",
        }
    ],
}
RUN = "run"


class Deaf:
    """Ignores all messages about the budget."""

    def on_warning(self, warned: Any) -> None:
        return

    def on_refusal(self, reason: Any) -> None:
        return

    def on_exhausted(self, reason: Any) -> None:
        return


def control(spool: Path, url: str) -> None:
    from orchestrator.config.run_config import BudgetConfig
    from orchestrator.launch.budgets import BudgetSubject, RunBudgets, StepTimer
    from orchestrator.launch.usage_shipper import UsageShipper
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.prices import PriceBook
    from orchestrator.training import usage

    me = os.getpid()
    sink = usage.SpoolSink(spool / f"{me}-controller.jsonl")
    numbers = itertools.count()

    def emit_and_say(kind: Any, *fields: Any) -> None:
        event = kind(f"control-{me}-{next(numbers)}", *fields)
        sink.emit(event)
        os.write(1, f"{event.event_id}\n".encode())

    labels = ("job", "final", "organisation", "centre", "team", "project", "", "")
    emit_and_say(usage.RunDeclared, time.time_ns(), RUN, me, *labels)
    config = BudgetConfig(
        limit=None, warn_at=(0.5,), currency="USD", webhook=None, stop_seconds=0.1, cancel_seconds=0.1,
        reserve_seconds=0.1, expire_seconds=3600.0,
    )  # fmt: skip
    spender = BudgetSubject(RUN, me, {"team": "team"}, 1, "s")
    budgets = RunBudgets(spender, config, PriceBook.parse(PRICES), StepTimer(), 0.01, time.time_ns)
    books = UsageShipper(lambda: Ledger.open(url, PRICES), spool, RUN, 0.01, budgets)
    books.start(Deaf())
    for number in itertools.count():
        lease = f"{me}/{number}"
        emit_and_say(usage.LeaseOpened, time.time_ns(), lease, RUN, me, "gpu", "s", "node", "pg", 0)
        for step in range(3):
            begin = time.time_ns()
            time.sleep(0.003)
            role, activity = usage.Role.LEARNER, usage.Activity.UPDATE
            emit_and_say(
                usage.SpanRecorded, lease, "learner-0", role, activity, begin, time.time_ns(), step, 1
            )
            emit_and_say(usage.Heartbeat, time.time_ns(), lease)
        emit_and_say(usage.LeaseClosed, time.time_ns(), lease, usage.CloseReason.RELEASED)


if __name__ == "__main__":
    mode, folder, argument = sys.argv[1:]
    {"emit": emit, "ship": ship, "control": control}[mode](Path(folder), argument)
