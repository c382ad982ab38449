"""Keeps one run within its budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from orchestrator.ledger.budgets import Budgets, Refusal
from orchestrator.ledger.errors import ReservationEndedError


class BudgetGuard:
    """Reserves the cost of the next period of work before it starts, and then settles the previous one.

    The new reservation is made while the old one is still open, and each one also covers the cost of
    stopping (a checkpoint, releasing the slots). So a run whose reservation is refused can still stop
    within its last one.

    A worked example with a limit of 10: `advance(0, 4)` reserves 4. `advance(3, 4)` reserves 4 more, then
    settles 3 of the first 4. `advance(6, 4)` needs 3 + 4 + 4 = 11 and is refused. The run stops, and
    `close(7)` settles the last 4: 7 of 10.
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
        """`covering` returns the names of the run's budgets. It is called at each reservation, because
        budgets apply to certain days. `lifetime_ns`: how long a reservation lasts before it expires, in case
        the run dies. `spent`: what the run spent before this guard existed, which it ignores.
        """
        self._budgets, self._covering, self._run_id = budgets, covering, run_id
        self._prefix, self._lifetime_ns = f"{run_id}/{attempt}", lifetime_ns
        self._count = 0
        self._reserved = Decimal(0)
        self._settled = spent
        self._open = ""
        self.names: tuple[str, ...] = ()
        """The budgets of the last reservation."""
        self.uncovered = Decimal(0)
        """Cost that exceeded the reservations and that the budgets could not cover. 0 if `ahead`
        was never too low.
        """

    def left(self, spent: Decimal) -> Decimal:
        """What remains of the open reservation after `spent`; negative if it was too small."""
        return self._reserved - (spent - self._settled)

    def take_over(self, left_behind: str, spent: Decimal) -> None:
        """Settle `spent` under a reservation of an earlier attempt that died. If that reservation has expired
        or was too small, the rest is taken from the budgets.
        """
        self.names = tuple(self._covering())
        self._open, self._reserved = left_behind, self._budgets.reserved(left_behind)
        before, self._settled = self._settled, Decimal(0)
        self._settle(spent)
        self._open, self._reserved, self._settled = "", Decimal(0), before

    def advance(self, spent: Decimal, ahead: Decimal) -> Refusal | None:
        """Settle what this attempt has `spent` so far, and reserve `ahead`: the most it will spend until the
        next call, including a stop after it.

        Returns None if the run may continue. After a refusal, stop and call `close`.
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
        """Settle the open reservation: the run has ended and spent this much in total."""
        self._settle(spent)
        self._open, self._reserved = "", Decimal(0)

    def _settle(self, spent: Decimal) -> None:
        due = spent - self._settled
        if self._open:
            covered = min(max(due, Decimal(0)), self._reserved)
            try:
                self._budgets.settle(self._open, covered)
                due -= covered
            except ReservationEndedError as ended:
                # It expired while the ledger was unavailable, or an earlier attempt to settle it was stored
                # although the connection was lost before the response. The rest is reserved again.
                due -= ended.spent
        if due > 0 and self.names:
            name = self._new_name()
            if self._budgets.reserve(self.names, name, self._run_id, due, self._lifetime_ns) is None:
                self._budgets.settle(name, due)
            else:
                self.uncovered += due
        self._settled = max(self._settled, spent)  # less if a lease turns out to have ended earlier

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}"
