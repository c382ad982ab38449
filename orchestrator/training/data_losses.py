"""How the loop reacts to data that was lost with its node."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import DataLostError
from orchestrator.training.buffer import Buffer
from orchestrator.training.events import AnswersLost, RolloutsLost, WeightsLost
from orchestrator.training.group_log import Lost
from orchestrator.training.stages import Observer
from orchestrator.training.supervision.failure_budget import FailureBudget


class DataLosses:
    """Reports each loss, counts it against one budget of `allowed` losses, and returns lost groups to the
    buffer's backlog. Every method raises FailureBudgetExceededError if the loss exceeds the budget.
    """

    def __init__(self, allowed: int, buffer: Buffer, observer: Observer) -> None:
        self._budget = FailureBudget("rollouts or weights lost", allowed)
        self._buffer, self._observer = buffer, observer
        self.weights_missing = False
        """Whether the published weights are gone. Nothing can be sampled until they are published again."""

    def lose_rollouts(self, lost: DataLostError, groups: Sequence[int]) -> None:
        """Record that the rollouts of these groups are gone."""
        self._observer.on_event(RolloutsLost(lost.reason, tuple(groups)))
        self._budget.spend(lost)
        self._request_again(groups)

    def lose_weights(self, lost: DataLostError, step: int, groups: Sequence[int]) -> None:
        """Record that the published weights were gone when these groups should have been sampled. If several
        requests find the same weights missing, that counts as one loss.
        """
        if not self.weights_missing:
            self._observer.on_event(WeightsLost(lost.reason, step))
            self._budget.spend(lost)
            self.weights_missing = True
        self._request_again(groups)

    def lose_answers(self, lost: DataLostError, step: int) -> None:
        """Record that the held-out answers of the evaluation after `step` updates are gone."""
        self._observer.on_event(AnswersLost(step, lost.reason))
        self._budget.spend(lost)

    def _request_again(self, groups: Sequence[int]) -> None:
        if lost := self._buffer.lose(groups):
            self._observer.on_groups(Lost(tuple(lost)))
