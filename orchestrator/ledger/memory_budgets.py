"""The in-memory budget store, for ledgers in memory, the limit of a single run, and tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from orchestrator.ledger.budgets import ENDINGS, Budget, Transfer, TransferKind


class MemoryBudgets:
    """Stores budgets in lists. Not thread-safe."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}
        self.transfers: list[Transfer] = []

    def define(self, budget: Budget) -> None:
        self._budgets[budget.name] = budget

    def budgets(self) -> list[Budget]:
        return [self._budgets[name] for name in sorted(self._budgets)]

    @contextmanager
    def transaction(self) -> Generator[MemoryBudgets]:
        """Roll the transfers back on an error."""
        before = list(self.transfers)
        try:
            yield self
        except BaseException:
            self.transfers = before
            raise

    def budget(self, name: str) -> Budget | None:
        return self._budgets.get(name)

    def last(self, name: str) -> Transfer | None:
        return next((transfer for transfer in reversed(self.transfers) if transfer.budget == name), None)

    def of_reservation(self, reservation: str) -> list[Transfer]:
        return [transfer for transfer in self.transfers if transfer.reservation == reservation]

    def of_run(self, run_id: str) -> list[Transfer]:
        return [transfer for transfer in self.transfers if transfer.run_id == run_id]

    def overdue(self, name: str, now_ns: int) -> list[Transfer]:
        ended = {transfer.reservation for transfer in self.transfers if transfer.kind in ENDINGS}
        return [
            transfer
            for transfer in self.transfers
            if transfer.budget == name
            and transfer.kind is TransferKind.RESERVE
            and transfer.expires_ns <= now_ns
            and transfer.reservation not in ended
        ]

    def append(self, transfer: Transfer) -> None:
        self.transfers.append(transfer)
