"""Keeps a run within its budgets: its own (`budget.limit`), and those of the ledger that others share.

A run always holds a reservation that covers an orderly stop: what is in flight, a checkpoint, giving back the
slots. Once the reservation is used up so far that it would no longer cover one, a new one is asked for; when
that is refused, the run stops within the old one.

    need       = rate x (a round + twice the longest step + `budget.stop_seconds`)
    reserve    = need + rate x `budget.reserve_seconds`, or where that is too much, need alone
    rate       = price of an accelerator-hour x accelerators held

The step that is under way counts as a step of its length so far, so that a first step of unknown length is
covered too, as long as it is no more than twice as long as what was seen of it. A step that goes on for
longer uses up what was set aside for the stop. When that is just enough to break the run off, that is done:

    last       = rate x (a round + `budget.break_off_seconds`, or `budget.stop_seconds` where that is less)
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
"""What the run's own budget is called in its messages."""

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BudgetSubject:
    """Who spends, and what it holds: `accelerators` of kind `sku`. `labels` are those of a budget's scope."""

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
        """A sentence for a person."""
        budget, used = self.status.budget, percent(self.status.used)
        return (
            f"budget {budget.name}: {used} of {budget.limit.normalize():f} {budget.currency}"
            f" is used or reserved (threshold {percent(self.threshold)})"
        )

    def to_json(self) -> dict[str, Any]:
        """What a webhook is told: the sentence, the threshold, and how the budget stands."""
        return {"text": self.text, "threshold": str(self.threshold), **self.status.to_dict()}


class StepTimer:
    """How long the run's steps take. Told by the run's thread, read by the bookkeeper's."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._longest = 0.0
        self._began: float | None = None

    def step_began(self) -> None:
        """Steps are made from now on: what came before, the start of the actors, can be broken off."""
        self._began = self._seconds()

    def step_ended(self) -> None:
        """A step has ended and the next one begins."""
        self._longest, self._began = self.longest(), self._seconds()

    def longest(self) -> float:
        """Seconds of the longest step so far, the one under way included; 0 before the first."""
        began = self._began
        return self._longest if began is None else max(self._longest, self._seconds() - began)


class RunBudgets:
    """The budgets of one attempt. Belongs to one thread, and is asked by it every `round_seconds`."""

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
        self._now_ns, self._began_ns = now_ns, now_ns()
        self._own_prices = Pricer(PriceTable([price_book]))
        self._own = None if config.limit is None else self._open_own(config.limit)
        self._shared: BudgetGuard | None = None
        self._last: tuple[Decimal, int] | None = None
        self._stop_is_covered: set[BudgetGuard] = set()
        self._compared = False
        self.spent = Decimal(0)
        """What the run had cost at the last round."""
        self.refusal = ""
        """Why the run must stop; empty: it may go on."""
        self.exhausted = ""
        """Why it must not even end its step: what was set aside for the stop is used up; empty: it may."""

    def round(self, ledger: Ledger | None, cost: Decimal | None) -> list[BudgetWarning]:
        """The run has cost `cost` in all, over its attempts (None: the ledger is away, and it is estimated).

        Reserves and settles; sets `refusal`; gives the thresholds that were crossed now. Raises LedgerError
        if the ledger can't be asked; then the run's own budget was looked at all the same.
        """
        if ledger is not None and (counted := ledger.pricer().table.currency) != self._config.currency:
            # Its figures are no measure for this run's budgets, and this run's cost none for its own.
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
        """The attempt has ended and the run cost `cost` in all: settle it. Raises LedgerError if the ledger
        can't be asked: then the last reservation is left behind, for the next attempt to settle, or to
        expire.
        """
        if self._shared is not None:
            self._shared.close(cost)
            if self._shared.uncovered:
                logger.warning("%s spent beyond what any budget covers", self._shared.uncovered)

    def _say_what_counts(self, ledger: Ledger) -> None:
        """Once: the ledger keeps its prices, whatever price book the run has brought along."""
        if self._compared:
            return
        self._compared = True
        with contextlib.suppress(UnknownPriceError):  # the run's own book may have ended since it began
            if self._rate(ledger) != self._rate(None):
                adopt = "orchestrator cost prices adopt FILE makes a price book count"
                logger.warning(
                    "the ledger has another price for %s, and that counts: %s", self._spender.sku, adopt
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
            self.refusal = refusal.reason
        elif guard.uncovered:
            self.refusal = f"budget {', '.join(guard.names)}: {guard.uncovered} was spent beyond it"
        if self.refusal:
            self._check_hard_limit(guard, spent, rate)
        fresh = [(name, share) for name in guard.names for share in budgets.warn_once(name)]
        return [BudgetWarning(budgets.status(name), share) for name, share in fresh]

    def _check_hard_limit(self, guard: BudgetGuard, spent: Decimal, rate: Fraction) -> None:
        """A run that was refused ends its step within its last reservation, or is broken off within it. One
        whose reservation did not even cover that any more when it was refused (the ledger was away) still
        makes its checkpoint: what it is over can't be helped.
        """
        config = self._config
        seconds = self._round_seconds + min(config.break_off_seconds, config.stop_seconds)
        left = guard.left(spent)
        if left >= rate * Fraction(seconds):
            self._stop_is_covered.add(guard)
        elif guard in self._stop_is_covered:
            self.exhausted = f"{left} is left of what was reserved of budget {', '.join(guard.names)}"

    def _open_own(self, limit: Decimal) -> tuple[Budgets, BudgetGuard]:
        """The run's own budget: for all days, and kept in memory, for nobody shares it."""
        budgets, warn_at = Budgets(MemoryBudgets(), self._now_ns), self._config.warn_at
        shares = tuple(sorted({Decimal(str(share)) for share in warn_at}))
        days = (day_number(date.min), day_number(date.max))
        budgets.define(Budget(OWN, {}, *days, limit, self._config.currency, shares))
        return budgets, self._guard(budgets, lambda: [OWN], Decimal(0))

    def _join(self, ledger: Ledger, spent: Decimal) -> BudgetGuard:
        """A guard for the ledger's budgets; what an attempt that was killed spent under its last reservation
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
        """The ledger's budgets for this run today. One in another currency can't be kept: a refusal."""
        names = ledger.budgets.covering(self._spender.labels)
        for name in names:
            currency = ledger.budgets.status(name).budget.currency
            if currency != self._config.currency:
                self.refusal = f"budget {name} is in {currency}, the run counts in {self._config.currency}"
        return names

    def _rate(self, ledger: Ledger | None) -> Fraction:
        """Money a second while all slots are held."""
        pricer = self._own_prices if ledger is None else ledger.pricer()
        per_hour = pricer.per_hour(self._spender.sku, "", "", day_of(self._now_ns()))
        return per_hour * self._spender.accelerators / 3600

    def _estimate(self) -> Decimal:
        """What the run will have cost by now, had it held all its slots since the ledger was last heard."""
        cost, at_ns = self._last or (Decimal(0), self._began_ns)
        return cost + _money(self._rate(None) * Fraction(self._now_ns() - at_ns, SECOND_NS))


def _money(amount: Fraction) -> Decimal:
    return rounded(amount, AMOUNT_PLACES)
