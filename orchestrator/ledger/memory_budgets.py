"""The budget store without a database: of a ledger in memory, of a run's own limit, and of tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from orchestrator.ledger.budgets import ENDINGS, Budget, Kind, Transfer


class MemoryBudgets:
    """A budget store in lists. For one thread."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}
        self.transfers: list[Transfer] = []

    def define(self, budget: Budget) -> None:
        """Add a budget, or change it from now on."""
        self._budgets[budget.name] = budget

    def budgets(self) -> list[Budget]:
        """All budgets, by name."""
        return [self._budgets[name] for name in sorted(self._budgets)]

    @contextmanager
    def transaction(self) -> Generator[MemoryBudgets]:
        """All of it happens, or nothing."""
        before = list(self.transfers)
        try:
            yield self
        except BaseException:
            self.transfers = before
            raise

    def budget(self, name: str) -> Budget | None:
        """The budget of that name."""
        return self._budgets.get(name)

    def last(self, name: str) -> Transfer | None:
        """The last transfer of a budget."""
        return next((transfer for transfer in reversed(self.transfers) if transfer.budget == name), None)

    def of_reservation(self, reservation: str) -> list[Transfer]:
        """All transfers of a reservation, in order."""
        return [transfer for transfer in self.transfers if transfer.reservation == reservation]

    def of_run(self, run_id: str) -> list[Transfer]:
        """All transfers of a run, in order."""
        return [transfer for transfer in self.transfers if transfer.run_id == run_id]

    def overdue(self, name: str, now_ns: int) -> list[Transfer]:
        """The reservations of a budget that have not ended and whose time is up."""
        ended = {transfer.reservation for transfer in self.transfers if transfer.kind in ENDINGS}
        return [
            transfer
            for transfer in self.transfers
            if transfer.budget == name
            and transfer.kind is Kind.RESERVE
            and transfer.expires_ns <= now_ns
            and transfer.reservation not in ended
        ]

    def append(self, transfer: Transfer) -> None:
        """Add a transfer."""
        self.transfers.append(transfer)
