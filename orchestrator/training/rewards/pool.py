"""The reward workers as one stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orchestrator.training.records import GroupTicket, RecordKind
from orchestrator.training.stages import Generated, Scored
from orchestrator.training.supervision.pool import WorkerPool


class RewardWorker(Protocol):
    """One worker; its scorers run in a process of their own that it can kill."""

    @property
    def name(self) -> str:
        """Stable over restarts."""
        ...

    async def score(self, generated: Generated) -> Scored:
        """ScoreStatus every rollout of a block. Raises WorkerLostError if the worker died or hangs."""
        ...

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write these groups' rollouts to `directory`; returns `sample` of them."""
        ...


W = TypeVar("W", bound=RewardWorker)


class RewardPool(Generic[W]):
    """A `RewardStage` over a pool of workers."""

    def __init__(self, workers: WorkerPool[W]) -> None:
        self._workers = workers

    async def score(self, generated: Generated) -> Scored:
        """ScoreStatus a block on a free worker."""
        return await self._workers.call(lambda worker: worker.score(generated))

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups, on a free worker."""
        return await self._workers.call(lambda worker: worker.record(step, tickets, directory, kind, sample))
