"""Keeps a run within its budgets: its own (`budget.limit`), and shared ones of the ledger.

A run always holds a reservation that covers an orderly shutdown: the work in flight, a checkpoint, releasing
the slots. When too little of the reservation remains for that, a new one is requested; if it is refused, the
run stops within the old one.

    need       = rate x (a round + twice the longest step + `budget.stop_seconds`)
    reserve    = need + rate x `budget.reserve_seconds`, or need alone if that is too much
    rate       = price of an accelerator-hour x accelerators held

The current step counts with its length so far, so a first step of unknown length is covered too, unless it
takes more than twice as long as was observed. A longer step uses up what was reserved for the shutdown. When
the rest is only enough to cancel the run, it is cancelled:

    last       = rate x (a round + `budget.cancel_seconds`, or `budget.stop_seconds` if that is less)
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.config.run_config import BudgetConfig
from orchestrator.ledger.budget_guard import BudgetGuard
from orchestrator.ledger.budgets import Budget, Budgets, BudgetStatus
from orchestrator.ledger.calendar import day_number, day_of
from orchestrator.ledger.errors import UnknownPriceError
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.memory_budgets import MemoryBudgets
from orchestrator.ledger.money import AMOUNT_PLACES, rounded
from orchestrator.ledger.prices import PriceBook, PriceTable
from orchestrator.ledger.pricing import Pricer
from orchestrator.percent import percent

logger = logging.getLogger(__name__)

OWN = "budget.limit"
"""The name of the run's own budget in messages."""

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BudgetSubject:
    """The run whose costs count, and the accelerators of type `sku` that it holds at its start. `labels` are
    matched with budget scopes.
    """

    run_id: str
    attempt: int
    labels: Mapping[str, str]
    accelerators: int
    sku: str


@dataclass(frozen=True, slots=True)
class BudgetWarning:
    """A budget has crossed a threshold, a share of its limit."""

    status: BudgetStatus
    threshold: Decimal

    @property
    def text(self) -> str:
        budget, used = self.status.budget, percent(self.status.used)
        return (
            f"budget {budget.name}: {used} of {budget.limit.normalize():f} {budget.currency}"
            f" is used or reserved (threshold {percent(self.threshold)})"
        )

    def to_json(self) -> dict[str, Any]:
        """The message for a webhook: the text, the threshold, and the status of the budget."""
        return {"text": self.text, "threshold": str(self.threshold), **self.status.to_dict()}


class StepTimer:
    """Measures the run's steps. Written by the run's thread, read by that of the usage shipper."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._longest = 0.0
        self._began: float | None = None

    def step_began(self) -> None:
        """Start measuring. Before this call, actors are starting and can be cancelled at any time."""
        self._began = self._seconds()

    def step_ended(self) -> None:
        """A step has ended and the next one begins."""
        self._longest, self._began = self.longest(), self._seconds()

    def longest(self) -> float:
        """Seconds of the longest step so far, including the current one; 0 before the first."""
        began = self._began
        return self._longest if began is None else max(self._longest, self._seconds() - began)


class RunBudgets:
    """The budgets of one attempt. Used by one thread, every `round_seconds`."""

    def __init__(
        self,
        spender: BudgetSubject,
        config: BudgetConfig,
        price_book: PriceBook,
        pace: StepTimer,
        round_seconds: float,
        now_ns: Callable[[], int],
    ) -> None:
        self._spender, self._config, self._pace, self._round_seconds = spender, config, pace, round_seconds
        self.accelerators = spender.accelerators
        """How many the run holds now, after workers have joined and left."""
        self._now_ns, self._began_ns = now_ns, now_ns()
        self._own_prices = Pricer(PriceTable([price_book]))
        self._own = None if config.limit is None else self._open_own(config.limit)
        self._shared: BudgetGuard | None = None
        self._last: tuple[Decimal, int] | None = None
        self._stop_is_covered: set[BudgetGuard] = set()
        self._compared = False
        self.spent = Decimal(0)
        """The cost of the run at the last round."""
        self.refusal = ""
        """Why the run must stop; empty if it may continue."""
        self.exhausted = ""
        """Why the run must not even finish its step, because the money reserved for the shutdown is
        used up; empty otherwise.
        """

    def round(self, ledger: Ledger | None, cost: Decimal | None) -> list[BudgetWarning]:
        """Reserve and settle for a run that has cost `cost` in total over its attempts. None means that the
        ledger is unavailable, and the cost is estimated.

        Sets `refusal`, and returns the thresholds that were crossed now. Raises LedgerError if the ledger is
        unavailable; the run's own budget has been checked nevertheless.
        """
        if ledger is not None and (counted := ledger.prices.pricer().table.currency) != self._config.currency:
            # The costs of this run and the budgets of the ledger cannot be compared.
            how = f"choose a price_book in {counted} and budget.currency={counted}"
            self.refusal = f"the ledger counts in {counted}, the run in {self._config.currency}: {how}"
            return []
        self.spent = spent = self._estimate() if cost is None else cost
        if cost is not None:
            self._last = (cost, self._now_ns())
        warned: list[BudgetWarning] = []
        if self._own is not None:
            warned += self._look_at(*self._own, spent, self._rate(None))
        if ledger is not None:
            self._say_what_counts(ledger)
            shared = self._shared = self._shared or self._join(ledger, spent)
            warned += self._look_at(ledger.budgets, shared, spent, self._rate(ledger))
        return warned

    def close(self, ledger: Ledger, cost: Decimal) -> None:
        """Settle at the end of the attempt; the run has cost `cost` in total. Raises LedgerError if the
        ledger is unavailable. The last reservation then stays, for the next attempt to settle, or to expire.
        """
        if self._shared is not None:
            self._shared.close(cost)
            if self._shared.uncovered:
                logger.warning("The run spent %s more than its budgets cover.", self._shared.uncovered)

    def _say_what_counts(self, ledger: Ledger) -> None:
        """Warn once if the ledger's price differs from that of the run's own price book."""
        if self._compared:
            return
        self._compared = True
        with contextlib.suppress(UnknownPriceError):  # the run's own price book may have expired
            if self._rate(ledger) != self._rate(None):
                adopt = "to change it, adopt a price book: orchestrator cost prices adopt FILE"
                logger.warning(
                    "the ledger has a different price for %s, which is used (%s)", self._spender.sku, adopt
                )

    def _look_at(
        self, budgets: Budgets, guard: BudgetGuard, spent: Decimal, rate: Fraction
    ) -> list[BudgetWarning]:
        if self.refusal:
            self._check_hard_limit(guard, spent, rate)
            return []
        seconds = self._round_seconds + 2 * self._pace.longest() + self._config.stop_seconds
        need = rate * Fraction(seconds)
        if guard.left(spent) >= need:
            return []
        refusal = guard.advance(spent, _money(need + rate * Fraction(self._config.reserve_seconds)))
        if refusal is not None:
            refusal = guard.advance(spent, _money(need))
        if refusal is not None:
            self.refusal = f"{refusal.reason}. {self._why_it_stops(guard.left(spent), rate)}"
        elif guard.uncovered:
            self.refusal = f"budget {', '.join(guard.names)} was exceeded by {guard.uncovered}"
        if self.refusal:
            self._check_hard_limit(guard, spent, rate)
        fresh = [(name, share) for name in guard.names for share in budgets.warn_once(name)]
        return [BudgetWarning(budgets.status(name), share) for name, share in fresh]

    def _why_it_stops(self, left: Decimal, rate: Fraction) -> str:
        """What is left of the reservation that the run holds, and what it would need to continue."""
        step, stop = self._pace.longest(), self._config.stop_seconds
        of_step, of_stop = (_money(rate * Fraction(seconds)).normalize() for seconds in (step, stop))
        return (
            f"Of what the run had reserved, {left.normalize():f} {self._config.currency} is left."
            f" The next step (as long as the longest one, {step:.1f} s) would cost {of_step:f},"
            f" the checkpoint and the shutdown (budget.stop_seconds, {stop:g} s) {of_stop:f};"
            " the run stops while it can still pay for them"
        )

    def _check_hard_limit(self, guard: BudgetGuard, spent: Decimal, rate: Fraction) -> None:
        """A run whose reservation was refused finishes its step within the last one, or is cancelled within
        it. If that reservation did not even cover this any more when the next one was refused (the ledger
        was unavailable), the run still writes its checkpoint.
        """
        config = self._config
        seconds = self._round_seconds + min(config.cancel_seconds, config.stop_seconds)
        left = guard.left(spent)
        if left >= rate * Fraction(seconds):
            self._stop_is_covered.add(guard)
        elif guard in self._stop_is_covered:
            self.exhausted = f"only {left} remains of the reservation in budget {', '.join(guard.names)}"

    def _open_own(self, limit: Decimal) -> tuple[Budgets, BudgetGuard]:
        """The run's own budget: for all days, and in memory because it is not shared."""
        budgets, warn_at = Budgets(MemoryBudgets(), self._now_ns), self._config.warn_at
        shares = tuple(sorted({Decimal(str(share)) for share in warn_at}))
        days = (day_number(date.min), day_number(date.max))
        budgets.define(Budget(OWN, {}, *days, limit, self._config.currency, shares))
        return budgets, self._guard(budgets, lambda: [OWN], Decimal(0))

    def _join(self, ledger: Ledger, spent: Decimal) -> BudgetGuard:
        """A guard for the shared budgets. What a killed attempt spent under its last reservation
        is settled first.
        """
        guard = self._guard(ledger.budgets, lambda: self._covering(ledger), spent)
        behind = ledger.budgets.left_behind(self._spender.run_id)
        if behind is not None:
            before = ledger.cost_at(self._spender.run_id, behind.at_ns)
            guard.take_over(behind.reservation, max(spent - before, Decimal(0)))
        return guard

    def _guard(self, budgets: Budgets, covering: Callable[[], list[str]], spent: Decimal) -> BudgetGuard:
        lifetime_ns = int(self._config.expire_seconds * SECOND_NS)
        return BudgetGuard(budgets, covering, self._spender.run_id, self._spender.attempt, lifetime_ns, spent)

    def _covering(self, ledger: Ledger) -> list[str]:
        """The shared budgets of this run today. A budget in another currency cannot be enforced
        and stops the run.
        """
        names = ledger.budgets.covering(self._spender.labels)
        for name in names:
            currency = ledger.budgets.status(name).budget.currency
            if currency != self._config.currency:
                self.refusal = f"budget {name} is in {currency}, the run counts in {self._config.currency}"
        return names

    def _rate(self, ledger: Ledger | None) -> Fraction:
        """Cost per second while all slots are held."""
        pricer = self._own_prices if ledger is None else ledger.prices.pricer()
        per_hour = pricer.per_hour(self._spender.sku, "", "", day_of(self._now_ns()))
        return per_hour * self.accelerators / 3600

    def _estimate(self) -> Decimal:
        """The cost of the run now, if it has held all slots since the ledger last answered."""
        cost, at_ns = self._last or (Decimal(0), self._began_ns)
        return cost + _money(self._rate(None) * Fraction(self._now_ns() - at_ns, SECOND_NS))


def _money(amount: Fraction) -> Decimal:
    return rounded(amount, AMOUNT_PLACES)
