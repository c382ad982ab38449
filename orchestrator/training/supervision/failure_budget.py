"""Limits how many failures of one kind a run tolerates."""

from __future__ import annotations

from orchestrator.errors import FailureBudgetExceededError


class FailureBudget:
    """Counts failures of one kind. `what` names them in the plural ("learner ranks lost")."""

    def __init__(self, what: str, allowed: int) -> None:
        self._what, self._allowed = what, allowed
        self.count = 0

    def spend(self, failure: Exception) -> None:
        """Count `failure`. Raises FailureBudgetExceededError if it exceeds the budget."""
        self.count += 1
        if self.count > self._allowed:
            raise FailureBudgetExceededError(self._what, self.count, self._allowed, str(failure)) from failure
