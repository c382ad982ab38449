"""Budgets as a state machine: reservations are made, settled, voided or left to expire, in any order."""

from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from orchestrator.ledger.budgets import ENDINGS, Budget, Budgets, TransferKind, from_micros
from orchestrator.ledger.errors import LedgerError, LedgerStateError
from orchestrator.ledger.memory_budgets import MemoryBudgets

LIMIT = Decimal(100)
amounts = st.decimals(0, 60, places=2)


class BudgetMachine(RuleBasedStateMachine):
    """A model beside the implementation: `pending` by reservation with its time, and the settled amount."""

    reservations = Bundle[str]("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.now = self.count = 0
        self.store = MemoryBudgets()
        self.budgets = Budgets(self.store, lambda: self.now)
        self.budgets.define(Budget("b", {}, 0, 10**6, LIMIT, "USD", ()))
        self.pending: dict[str, tuple[Decimal, int]] = {}
        self.settled = Decimal(0)

    @rule(target=reservations, amount=amounts, lifetime=st.integers(1, 20))
    def reserve(self, amount: Decimal, lifetime: int) -> str:
        self.count += 1
        name = f"reservation-{self.count}"
        self.drop_overdue()
        fits = amount <= LIMIT - self.settled - sum(amount for amount, _ in self.pending.values())
        assert (self.budgets.reserve(["b"], name, "run", amount, lifetime) is None) == fits
        if fits:
            self.pending[name] = (amount, self.now + lifetime)
        return name

    @rule(name=reservations, spent=amounts)
    def settle(self, name: str, spent: Decimal) -> None:
        reserved = self.pending.get(name)
        if reserved is not None and spent <= reserved[0]:
            self.budgets.settle(name, spent)
            self.settled += spent
            del self.pending[name]
        elif not self.ended_like(name, TransferKind.SETTLE, spent):
            self.must_refuse(lambda: self.budgets.settle(name, spent))

    @rule(name=reservations)
    def void(self, name: str) -> None:
        if name in self.pending:
            self.budgets.void(name)
            del self.pending[name]
        elif not self.ended_like(name, TransferKind.VOID, Decimal(0)):
            self.must_refuse(lambda: self.budgets.void(name))

    @rule(by=st.integers(1, 15))
    def wait(self, by: int) -> None:
        self.now += by

    @rule()
    def expire(self) -> None:
        overdue = sorted(name for name, (_, until) in self.pending.items() if until <= self.now)
        assert self.budgets.expire() == overdue
        self.drop_overdue()

    def drop_overdue(self) -> None:
        self.pending = {name: row for name, row in self.pending.items() if row[1] > self.now}

    def ended_like(self, name: str, kind: TransferKind, spent: Decimal) -> bool:
        ended = [one for one in self.store.of_reservation(name) if one.kind in ENDINGS]
        return any((one.kind, from_micros(one.micros)) == (kind, spent) for one in ended)

    def must_refuse(self, act: object) -> None:
        assert callable(act)
        before = list(self.store.transfers)
        try:
            act()
        except (LedgerError, LedgerStateError):
            assert self.store.transfers == before
        else:
            raise AssertionError("it was not refused")

    @invariant()
    def the_account_agrees_with_the_model_and_with_a_replay(self) -> None:
        last = self.store.last("b")
        balance = (last.pending_after, last.settled_after) if last else (0, 0)
        assert from_micros(balance[0]) == sum(amount for amount, _ in self.pending.values())
        assert from_micros(balance[1]) == self.settled <= LIMIT
        reserved = sum(one.micros for one in self.store.transfers if one.kind is TransferKind.RESERVE)
        ended = {one.reservation: one for one in self.store.transfers if one.kind in ENDINGS}
        given_back = sum(
            one.micros
            for one in self.store.transfers
            if one.kind is TransferKind.RESERVE and one.reservation in ended
        )
        assert (reserved - given_back, sum(one.micros for one in ended.values())) == balance


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
