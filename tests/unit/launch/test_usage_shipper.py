"""Shipping the usage of a run that the ledger cannot price."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import FakeClock
from orchestrator.errors import BudgetStopError
from orchestrator.launch.budgets import BudgetSubject, BudgetWarning, RunBudgets, StepTimer
from orchestrator.launch.usage_shipper import UsageShipper
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook
from orchestrator.training.usage import LeaseOpened, SpoolSink, new_event_id
from tests.unit.launch.test_budgets import BOOK, config

SECOND = 1_000_000_000


class Heard:
    """Records what the usage shipper reports."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.refused = threading.Event()

    def on_warning(self, warned: BudgetWarning) -> None: ...

    def on_refusal(self, reason: BudgetStopError) -> None:
        self.refusals.append(str(reason))
        self.refused.set()

    def on_exhausted(self, reason: BudgetStopError) -> None: ...


def test_an_unpriced_run_is_shipped_to_the_ledger_and_its_limit_is_enforced_by_an_estimate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock(1_790_000_000 * SECOND)
    other: dict[str, Any] = {**BOOK, "prices": [{**BOOK["prices"][0], "sku": "other"}]}
    ledger = Ledger.in_memory(other, now_ns=clock.now_ns)
    sink = SpoolSink(tmp_path / "1-controller.jsonl")
    for slot in range(2):
        lease = f"run/{slot}"
        opened = (new_event_id(), clock.now_ns(), lease, "run", 1, "gpu", "s", "n", "pg", slot)
        sink.emit(LeaseOpened(*opened))
    spender = BudgetSubject("run", 1, {}, accelerators=2, sku="s")
    budgets = RunBudgets(spender, config("60"), PriceBook.parse(BOOK), StepTimer(), 1.0, clock.now_ns)
    books, heard = UsageShipper(lambda: ledger, tmp_path, "run", 0.001, budgets), Heard()
    with caplog.at_level(logging.WARNING):
        books.start(heard)
        books.wait_for_first_round(300)
        clock.advance(100 * SECOND)
        assert heard.refused.wait(300)
        assert books.close()
    assert ledger.knows("run")
    assert "can't price this run" in caplog.text
    assert "can't be reached" not in caplog.text
    (refusal,) = heard.refusals
    assert "budget.limit" in refusal
