"""The reward workers as one stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orchestrator.training.records import GroupTicket, RecordKind
from orchestrator.training.stages import Generated, Scored
from orchestrator.training.supervision.pool import WorkerPool


class RewardWorker(Protocol):
    """One worker. Its scorers run in processes of their own, which it can stop."""

    @property
    def name(self) -> str:
        """Stays the same over restarts."""
        ...

    async def score(self, generated: Generated) -> Scored:
        """Score every rollout of a block. Raises WorkerLostError if the worker died or hangs."""
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
        """Score a block on a free worker."""
        return await self._workers.call(lambda worker: worker.score(generated))

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups, on a free worker."""
        return await self._workers.call(lambda worker: worker.record(step, tickets, directory, kind, sample))
