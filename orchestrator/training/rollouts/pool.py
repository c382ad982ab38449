"""The rollout workers as one stage: a request goes to a free worker, with the newest weights that
were published.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from orchestrator.errors import DataLostError
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.supervision.pool import WorkerPool


class RolloutWorker(Protocol):
    """One worker. It pulls `weights` first if it has older ones, so a restarted worker is never behind."""

    @property
    def name(self) -> str:
        """Stable over restarts."""
        ...

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> Generated:
        """Run the request. Raises WorkerLostError if the worker died or hangs."""
        ...


W = TypeVar("W", bound=RolloutWorker)


class RolloutPool(Generic[W]):
    """A `RolloutStage` over a pool of workers."""

    def __init__(self, workers: WorkerPool[W]) -> None:
        self._workers = workers
        self._weights: PublishedWeights | None = None

    @property
    def width(self) -> int:
        """Requests it can work on at once."""
        return self._workers.width

    def use(self, weights: PublishedWeights) -> None:
        """Requests that start from here on are sampled with these weights."""
        self._weights = weights

    async def generate(self, request: RolloutRequest) -> Generated:
        """Run the request on a free worker, and on another if that one is lost. Weights that were superseded
        and are gone before the worker has read them are replaced by the newest.
        """

        async def task(worker: W) -> Generated:
            while True:
                weights = self._weights
                if weights is None:
                    raise RuntimeError("no weights were published yet")
                try:
                    return await worker.generate(request, weights)
                except DataLostError:
                    if weights is self._weights:
                        raise

        return await self._workers.call(task)
