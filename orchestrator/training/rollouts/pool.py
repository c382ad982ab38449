"""Combines the rollout workers into one stage. Each request goes to a free worker together with the
newest published weights.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from orchestrator.errors import DataLostError
from orchestrator.training.events import WaitKind
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import Activity
from orchestrator.training.waiting import Waits


class RolloutWorker(Protocol):
    """One worker. It first loads `weights` if it holds others, so a restarted
    worker never uses old weights.
    """

    @property
    def name(self) -> str:
        """The worker's name, which does not change when it is restarted."""
        ...

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> Generated:
        """Run the request. Raises WorkerLostError if the worker died or hangs."""
        ...


W = TypeVar("W", bound=RolloutWorker)


class RolloutPool(Generic[W]):
    """A `RolloutStage` over a pool of workers."""

    def __init__(self, workers: WorkerPool[W], waits: Waits) -> None:
        self._workers, self._waits = workers, waits
        self._weights: PublishedWeights | None = None

    @property
    def width(self) -> int:
        """How many requests can run at the same time."""
        return self._workers.width

    def use(self, weights: PublishedWeights) -> None:
        """Use these weights for all requests that start from now on."""
        self._weights = weights

    async def generate(self, request: RolloutRequest) -> Generated:
        """Run the request on a free worker, and on another one if that worker is lost. If the weights were
        superseded and freed before the worker has read them, the newest weights are used instead.
        """

        async def task(worker: W) -> Generated:
            what = WaitKind.EVALUATE if request.activity is Activity.EVALUATE else WaitKind.GENERATE
            while True:
                weights = self._weights
                if weights is None:
                    raise RuntimeError("no weights were published yet")
                try:
                    with self._waits.on(what, worker.name):
                        return await worker.generate(request, weights)
                except DataLostError:
                    if weights is self._weights:
                        raise

        return await self._workers.call(task)
