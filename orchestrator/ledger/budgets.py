"""Two-phase budgets: money is reserved before it is spent, and then settled, voided or expired.

    reserve   needs available = limit - settled - pending to cover it; pending grows
    settle    pending shrinks by the reservation, settled grows by what was spent (never more than reserved)
    void      pending shrinks; the money is available again
    expire    a void by timeout: the run that made the reservation died

Settled money therefore never exceeds the limit, however many runs share a budget, and a run learns in time
that it cannot afford to finish its work in flight. The two phases follow TigerBeetle (its
docs/coding/two-phase-transfers.md). Amounts are whole millionths of the currency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.ledger.calendar import date_of, day_of
from orchestrator.ledger.errors import LedgerError, LedgerStateError, ReservationEndedError

MICRO = Decimal("0.000001")


class TransferKind(StrEnum):
    """What a transfer does. WARN moves no money: it records that a threshold was crossed and reported."""

    RESERVE = "reserve"
    SETTLE = "settle"
    VOID = "void"
    EXPIRE = "expire"
    WARN = "warn"


ENDINGS = (TransferKind.SETTLE, TransferKind.VOID, TransferKind.EXPIRE)


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` may be spent on the days [first_day, end_day) by usage that has all labels of `scope`,
    such as `{"team": "blue"}`.

    `warn_at` are shares of the limit, in ascending order.
    """

    name: str
    scope: Mapping[str, str]
    first_day: int
    end_day: int
    limit: Decimal
    currency: str
    warn_at: tuple[Decimal, ...]

    def covers(self, labels: Mapping[str, str], day: int) -> bool:
        """Whether usage with these labels on that day is charged to this budget."""
        in_scope = all(labels.get(name) == value for name, value in self.scope.items())
        return in_scope and self.first_day <= day < self.end_day


@dataclass(frozen=True, slots=True)
class Transfer:
    """An entry in a budget's account, with the balance after it, in millionths."""

    budget: str
    kind: TransferKind
    reservation: str
    run_id: str
    micros: int
    expires_ns: int
    at_ns: int
    pending_after: int
    settled_after: int


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """The balance of a budget: `available` = limit - settled - pending.

    `crossed`: the thresholds that settled + pending has reached.
    """

    budget: Budget
    settled: Decimal
    pending: Decimal
    available: Decimal
    crossed: tuple[Decimal, ...]

    @property
    def used(self) -> Decimal:
        """Settled and pending money as a share of the limit; 1 if the limit is 0."""
        return (self.settled + self.pending) / self.budget.limit if self.budget.limit else Decimal(1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; amounts are decimal strings."""
        budget = self.budget
        return {
            "name": budget.name,
            "scope": dict(budget.scope),
            "first": date_of(budget.first_day).isoformat(),
            "last": date_of(budget.end_day - 1).isoformat(),
            "currency": budget.currency,
            "limit": f"{budget.limit:f}",
            "settled": f"{self.settled:f}",
            "pending": f"{self.pending:f}",
            "available": f"{self.available:f}",
            "crossed": [str(share) for share in self.crossed],
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused reservation: the `status` of the first budget that could not cover it, and the reason."""

    status: BudgetStatus
    reason: str


class BudgetBook(Protocol):
    """Port: the budgets' accounts, within one exclusive transaction."""

    def budget(self, name: str) -> Budget | None:
        """The current definition of a budget."""
        ...

    def last(self, name: str) -> Transfer | None:
        """The last transfer of a budget, which has its balance."""
        ...

    def of_reservation(self, reservation: str) -> list[Transfer]:
        """All transfers of a reservation, in order, over all budgets."""
        ...

    def of_run(self, run_id: str) -> list[Transfer]:
        """All transfers of a run, in order, over all budgets."""
        ...

    def overdue(self, name: str, now_ns: int) -> list[Transfer]:
        """The reservations of a budget that are still open although they have expired."""
        ...

    def append(self, transfer: Transfer) -> None: ...


class BudgetStore(Protocol):
    """Port: stores budgets."""

    def define(self, budget: Budget) -> None:
        """Add a budget, or redefine it from now on."""
        ...

    def budgets(self) -> list[Budget]:
        """The current definitions of all budgets, by name."""
        ...

    def transaction(self) -> AbstractContextManager[BudgetBook]:
        """An exclusive transaction that is committed as a whole or not at all."""
        ...


class Budgets:
    """The operations on budgets. Safe to use from several processes at once."""

    def __init__(self, store: BudgetStore, now_ns: Callable[[], int]) -> None:
        self._store, self._now_ns = store, now_ns

    def define(self, budget: Budget) -> None:
        """Add a budget, or change its limit from now on. Raises LedgerError if it is invalid."""
        if budget.limit < 0 or budget.end_day <= budget.first_day or not budget.name:
            got = f"{budget.limit} for {date_of(budget.first_day)}..{date_of(budget.end_day)}"
            raise LedgerError(
                f"budget {budget.name}", got, "a name, a limit of 0 or more, and at least one day"
            )
        if list(budget.warn_at) != sorted(set(budget.warn_at)) or any(share <= 0 for share in budget.warn_at):
            shares = ", ".join(map(str, budget.warn_at))
            raise LedgerError(f"budget {budget.name}: warn_at", shares, "ascending shares above 0")
        limit = from_micros(to_micros(budget.limit, ROUND_HALF_EVEN))
        self._store.define(replace(budget, limit=limit))

    def covering(self, labels: Mapping[str, str], day: int | None = None) -> list[str]:
        """The names of the budgets that usage with these labels is charged to, on `day` or today."""
        on = day_of(self._now_ns()) if day is None else day
        return [budget.name for budget in self._store.budgets() if budget.covers(labels, on)]

    def reserve(
        self, names: Sequence[str], reservation: str, run_id: str, amount: Decimal, lifetime_ns: int
    ) -> Refusal | None:
        """Reserve `amount` in all of the budgets, or in none; a refusal names the first budget that
        cannot cover it.

        The reservation expires after `lifetime_ns` unless it is settled. Repeating a reservation
        changes nothing. Raises LedgerError for an unknown budget, ReservationEndedError for a
        reservation that has already ended.
        """
        micros = to_micros(amount, ROUND_CEILING)
        with self._store.transaction() as book:
            now = self._now_ns()
            known = book.of_reservation(reservation)
            if known:
                for one in known:
                    if one.kind in ENDINGS:
                        raise ReservationEndedError(reservation, one.kind, from_micros(one.micros))
                return None
            for name in names:
                self._expire(book, name, now)
                refusal = self._refusal(book, name, micros, now)
                if refusal is not None:
                    return refusal
            for name in names:
                line = Transfer(
                    name, TransferKind.RESERVE, reservation, run_id, micros, now + lifetime_ns, now, 0, 0
                )
                _post(book, line, pending=micros)
        return None

    def settle(self, reservation: str, amount: Decimal) -> None:
        """Spend `amount` of a reservation; the rest becomes available again.

        Repeating a settlement changes nothing. Raises LedgerError if `amount` is more than was reserved,
        ReservationEndedError if the reservation has ended, LedgerStateError if it is unknown.
        """
        self._end(reservation, TransferKind.SETTLE, to_micros(amount, ROUND_HALF_EVEN))

    def void(self, reservation: str) -> None:
        """Release a whole reservation. Raises LedgerStateError as `settle` does."""
        self._end(reservation, TransferKind.VOID, 0)

    def reserved(self, reservation: str) -> Decimal:
        """The amount of a reservation, even if it has ended. Raises LedgerStateError if it is unknown."""
        with self._store.transaction() as book:
            known = book.of_reservation(reservation)
        if not known:
            raise LedgerStateError(f"Unknown reservation {reservation}.")
        return from_micros(known[0].micros)

    def left_behind(self, run_id: str) -> Transfer | None:
        """The last reservation of a run, if it was neither settled nor voided because the run died."""
        with self._store.transaction() as book:
            transfers = book.of_run(run_id)
        last = next((one for one in reversed(transfers) if one.kind is TransferKind.RESERVE), None)
        if last is None:
            return None
        ended = {one.kind for one in transfers if one.reservation == last.reservation}
        return None if ended & {TransferKind.SETTLE, TransferKind.VOID} else last

    def expire(self) -> list[str]:
        """End all reservations that have expired, and return their names."""
        with self._store.transaction() as book:
            now = self._now_ns()
            return sorted(
                {name for budget in self._store.budgets() for name in self._expire(book, budget.name, now)}
            )

    def status(self, name: str) -> BudgetStatus:
        """The current balance of a budget. Raises LedgerError if there is no budget of that name."""
        with self._store.transaction() as book:
            self._expire(book, name, self._now_ns())
            return _status(book, name)

    def statuses(self) -> list[BudgetStatus]:
        return [self.status(budget.name) for budget in self._store.budgets()]

    def warn_once(self, name: str) -> list[Decimal]:
        """The thresholds that a budget has crossed and that no earlier call has returned."""
        with self._store.transaction() as book:
            now = self._now_ns()
            status = _status(book, name)
            fresh: list[Decimal] = []
            for share in status.crossed:
                said = f"{name}@{status.budget.limit}x{share}"
                if not book.of_reservation(said):
                    _post(book, Transfer(name, TransferKind.WARN, said, "", 0, 0, now, 0, 0))
                    fresh.append(share)
            return fresh

    def _end(self, reservation: str, kind: TransferKind, spent: int) -> None:
        with self._store.transaction() as book:
            known = book.of_reservation(reservation)
            if not known:
                raise LedgerStateError(f"Unknown reservation {reservation}.")
            reserved = [transfer for transfer in known if transfer.kind is TransferKind.RESERVE]
            ended = [transfer for transfer in known if transfer.kind in ENDINGS]
            if ended:
                if all((one.kind, one.micros) == (kind, spent) for one in ended):
                    return
                raise ReservationEndedError(reservation, ended[0].kind, from_micros(ended[0].micros))
            if not 0 <= spent <= reserved[0].micros:
                allowed = f"0 to {from_micros(reserved[0].micros)}, the amount reserved"
                raise LedgerError(f"settlement of {reservation}", str(from_micros(spent)), allowed)
            for one in reserved:
                line = replace(one, kind=kind, micros=spent, at_ns=self._now_ns())
                _post(book, line, pending=-one.micros, settled=spent)

    def _expire(self, book: BudgetBook, name: str, now_ns: int) -> list[str]:
        """End the expired reservations of a budget, in every budget that they were made in."""
        ended: list[str] = []
        for overdue in book.overdue(name, now_ns):
            for one in book.of_reservation(overdue.reservation):
                _post(
                    book, replace(one, kind=TransferKind.EXPIRE, micros=0, at_ns=now_ns), pending=-one.micros
                )
            ended.append(overdue.reservation)
        return ended

    def _refusal(self, book: BudgetBook, name: str, micros: int, now_ns: int) -> Refusal | None:
        status = _status(book, name)
        budget = status.budget
        if not budget.first_day <= day_of(now_ns) < budget.end_day:
            days = f"{date_of(budget.first_day)} to {date_of(budget.end_day - 1)}"
            return Refusal(status, f"budget {name} applies from {days}")
        if micros > to_micros(status.available, ROUND_HALF_EVEN):
            asked, currency = from_micros(micros), budget.currency
            reason = (
                f"budget {name}: {asked} {currency} requested, {status.available} of {budget.limit} available"
            )
            return Refusal(status, reason)
        return None


def _status(book: BudgetBook, name: str) -> BudgetStatus:
    budget = book.budget(name)
    if budget is None:
        raise LedgerError("budget", name, "an existing budget", "see: orchestrator cost budget list")
    last = book.last(name)
    pending = from_micros(last.pending_after if last else 0)
    settled = from_micros(last.settled_after if last else 0)
    crossed = tuple(share for share in budget.warn_at if settled + pending >= share * budget.limit)
    return BudgetStatus(budget, settled, pending, budget.limit - settled - pending, crossed)


def _post(book: BudgetBook, line: Transfer, pending: int = 0, settled: int = 0) -> None:
    """Append a transfer that changes its budget's balance by these amounts."""
    last = book.last(line.budget)
    before = (last.pending_after, last.settled_after) if last else (0, 0)
    book.append(replace(line, pending_after=before[0] + pending, settled_after=before[1] + settled))


def to_micros(amount: Decimal, rounding: str) -> int:
    return int((amount / MICRO).to_integral_value(rounding))


def from_micros(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-6)
