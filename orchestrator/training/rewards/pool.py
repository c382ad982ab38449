"""A pool of reward workers as one stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orchestrator.training.events import WaitKind
from orchestrator.training.records import GroupTicket, RecordKind
from orchestrator.training.stages import Generated, Scored
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.waiting import Waits


class RewardWorker(Protocol):
    """One reward worker. It can stop its scorers, which run in child processes."""

    @property
    def name(self) -> str:
        """A name that stays the same over restarts."""
        ...

    async def score(self, generated: Generated) -> Scored:
        """Score every rollout of a block. Raises WorkerLostError if the worker dies or hangs."""
        ...

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups to `directory`. Returns `sample` of them."""
        ...


W = TypeVar("W", bound=RewardWorker)


class RewardPool(Generic[W]):
    """Implements `RewardStage` with a pool of workers."""

    def __init__(self, workers: WorkerPool[W], waits: Waits) -> None:
        self._workers, self._waits = workers, waits

    async def score(self, generated: Generated) -> Scored:

        async def task(worker: W) -> Scored:
            with self._waits.on(WaitKind.SCORE, worker.name):
                return await worker.score(generated)

        return await self._workers.call(task)

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:

        async def task(worker: W) -> list[dict[str, Any]]:
            with self._waits.on(WaitKind.RECORD, worker.name):
                return await worker.record(step, tickets, directory, kind, sample)

        return await self._workers.call(task)
