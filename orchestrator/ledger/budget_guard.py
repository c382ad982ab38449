"""Keeps one run within its budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from orchestrator.ledger.budgets import Budgets, Refusal
from orchestrator.ledger.errors import LedgerStateError


class BudgetGuard:
    """Reserves what the next stretch of work will cost before it starts, and settles the stretch before.

    The new reservation is made while the old one still stands, and each covers, beside the work, what
    stopping costs (a checkpoint, giving back the slots). So a run that is refused can still stop within its
    last reservation.

    A worked example, limit 10: `advance(0, 4)` reserves 4. `advance(3, 4)` reserves 4 more, then settles 3 of
    the first 4. `advance(6, 4)` needs 3 + 4 + 4 = 11: refused. The run stops; `close(7)` settles the last 4:
    7 of 10.
    """

    def __init__(
        self,
        budgets: Budgets,
        covering: Callable[[], Sequence[str]],
        run_id: str,
        attempt: int,
        lifetime_ns: int,
        spent: Decimal = Decimal(0),
    ) -> None:
        """`covering`: the names of the run's budgets, asked at each reservation, for days have budgets of
        their own. `lifetime_ns`: after this long without a word the run is dead and its reservation expires.
        `spent`: what was spent before the guard began, which is no concern of its.
        """
        self._budgets, self._covering, self._run_id = budgets, covering, run_id
        self._prefix, self._lifetime_ns = f"{run_id}/{attempt}", lifetime_ns
        self._count = 0
        self._reserved = Decimal(0)
        self._settled = spent
        self._open = ""
        self.names: tuple[str, ...] = ()
        """The budgets that were asked last."""
        self.uncovered = Decimal(0)
        """What the run cost beyond its reservations and its budgets could not cover: 0 if `ahead` was never
        too low.
        """

    def left(self, spent: Decimal) -> Decimal:
        """What is left of the reservation that stands, once `spent`; less than 0 if it was too small."""
        return self._reserved - (spent - self._settled)

    def take_over(self, left_behind: str, spent: Decimal) -> None:
        """`spent` under a reservation of an earlier attempt that died: settle it, from the budgets if the
        reservation has expired or was too small.
        """
        self.names = tuple(self._covering())
        self._open, self._reserved = left_behind, self._budgets.reserved(left_behind)
        before, self._settled = self._settled, Decimal(0)
        self._settle(spent)
        self._open, self._reserved, self._settled = "", Decimal(0), before

    def advance(self, spent: Decimal, ahead: Decimal) -> Refusal | None:
        """`spent` by this attempt so far; until the next call and a stop after it, at most `ahead` more.

        None: go on. A refusal: stop now, then `close`.
        """
        self.names = tuple(self._covering())
        if not self.names:
            self.close(spent)
            return None
        if not self._open:
            self._settle(spent)
        name = self._new_name()
        refusal = self._budgets.reserve(self.names, name, self._run_id, ahead, self._lifetime_ns)
        if refusal is None:
            self._settle(spent)
            self._open, self._reserved = name, ahead
        return refusal

    def close(self, spent: Decimal) -> None:
        """The run has ended and `spent` so much in all."""
        self._settle(spent)
        self._open, self._reserved = "", Decimal(0)

    def _settle(self, spent: Decimal) -> None:
        due = spent - self._settled
        if self._open:
            covered = min(max(due, Decimal(0)), self._reserved)
            try:
                self._budgets.settle(self._open, covered)
                due -= covered
            except LedgerStateError:
                pass  # it has expired while the ledger was away: `due` is asked for anew
        if due > 0 and self.names:
            name = self._new_name()
            if self._budgets.reserve(self.names, name, self._run_id, due, self._lifetime_ns) is None:
                self._budgets.settle(name, due)
            else:
                self.uncovered += due
        self._settled = max(self._settled, spent)  # a lease turns out to have ended before it was asked about

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}"
