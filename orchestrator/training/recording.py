"""Records rollouts on disk without letting a full disk end the run.

A record that cannot be written is lost: the loss is counted and reported as an event. More than
`budget` lost records end the run with FailureBudgetExceededError, so that a long run cannot finish
without any readable rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import DataLostError, StorageError
from orchestrator.training.events import RecordLost
from orchestrator.training.records import GroupTicket, RecordKind
from orchestrator.training.stages import Observer, RewardStage
from orchestrator.training.supervision.failure_budget import FailureBudget


class TolerantRecorder:
    """Records rollouts through the reward workers, which hold them. Tolerates `budget` losses in total."""

    def __init__(self, rewards: RewardStage, observer: Observer, budget: int) -> None:
        self._rewards, self._observer = rewards, observer
        self._losses = FailureBudget("steps whose rollouts could not be recorded", budget)

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups under `directory`. Returns `sample` of them, none if the record
        was lost. Raises FailureBudgetExceededError if the loss exceeds the budget.
        """
        try:
            return await self._rewards.record(step, tickets, directory, kind, sample)
        except (StorageError, DataLostError) as error:
            self._observer.on_event(RecordLost(step, kind, str(error)))
            self._losses.spend(error)
            return []
