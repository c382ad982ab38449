"""Combines the rollout workers into one stage. Each request goes to the worker with the least to do, together
with the newest published weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from orchestrator.errors import DataLostError, WorkerLostError
from orchestrator.training.events import WaitKind
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import Activity
from orchestrator.training.waiting import Waits

logger = logging.getLogger(__name__)


def worker_capacity(rollout: RolloutConfig) -> int:
    """A worker gets another request while it has fewer rollouts than this. It is enough for two shares of a
    batch, so that its engine has rollouts to start when those of the first share end, and not much more, so
    that the others stay available for whichever worker is ready first.
    """
    share = -(-rollout.prompts_per_step * rollout.group_size // rollout.workers)
    return 2 * max(rollout.max_batch_rows, share)


class RolloutWorker(Protocol):
    """One worker, which works on several requests at once. It loads `weights` before a request, unless it
    holds these or newer ones, so a restarted worker never uses old weights.
    """

    @property
    def name(self) -> str:
        """The worker's name, which does not change when it is restarted."""
        ...

    def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        """Run the request and yield its groups as they are completed. Raises WorkerLostError if the worker
        died or hangs, and DataLostError if the weights are gone.
        """
        ...

    async def update(self, weights: PublishedWeights) -> None:
        """Load the weights now, between two tokens of running rollouts. Raises like `generate`."""
        ...


W = TypeVar("W", bound=RolloutWorker)


class RolloutPool(Generic[W]):
    """A `RolloutStage` over a pool of workers. With `push`, new weights are sent to all workers at once;
    otherwise each worker loads them with its next request.
    """

    def __init__(self, workers: WorkerPool[W], waits: Waits, *, push: bool = False) -> None:
        self._workers, self._waits, self._push = workers, waits, push
        self._weights: PublishedWeights | None = None
        self._pushes: set[asyncio.Task[None]] = set()

    @property
    def width(self) -> int:
        """The number of workers."""
        return self._workers.width

    def use(self, weights: PublishedWeights) -> None:
        """See `RolloutStage`."""
        sequence = 0 if self._weights is None else self._weights.sequence + 1
        self._weights = replace(weights, sequence=sequence)
        if self._push:
            for worker in self._workers.ready():
                task = asyncio.ensure_future(self._update(worker, self._weights))
                self._pushes.add(task)
                task.add_done_callback(self._pushes.discard)

    async def catch_up(self, worker: W) -> None:
        """Load the newest weights into a worker before it joins, so that no request waits for that. Raises
        WorkerLostError if the worker is lost.
        """
        weights: PublishedWeights | None = None
        while self._weights is not None and weights is not self._weights:
            weights = self._weights
            try:
                await worker.update(weights)
            except DataLostError as error:  # its first request meets newer weights, or reports the loss
                logger.info("%s could not load version %d: %s", worker.name, weights.version, error)

    async def generate(self, request: RolloutRequest) -> AsyncGenerator[Generated]:
        """See `RolloutStage`. The groups that a lost worker had not completed go to another one. If the
        weights were superseded and freed before the worker has read them, the newest weights are used.
        """
        left = request
        while left.groups:
            async with self._workers.borrow(len(left.groups) * left.group_size) as loan:
                weights = self._weights
                if weights is None:
                    raise RuntimeError("no weights were published yet")
                try:
                    async with contextlib.aclosing(self._watched(loan.worker, left, weights)) as portions:
                        async for generated in portions:
                            left = _without(left, generated.request)
                            loan.give_back(len(generated.request.groups) * left.group_size)
                            yield generated
                except DataLostError:
                    if weights is self._weights:
                        raise

    async def _watched(
        self, worker: W, request: RolloutRequest, weights: PublishedWeights
    ) -> AsyncGenerator[Generated]:
        what = WaitKind.EVALUATE if request.activity is Activity.EVALUATE else WaitKind.GENERATE
        left = len(request.groups)
        async with contextlib.aclosing(worker.generate(request, weights)) as portions:
            while left:
                with self._waits.on(what, worker.name):
                    generated = await anext(portions)
                left -= len(generated.request.groups)
                yield generated

    async def _update(self, worker: W, weights: PublishedWeights) -> None:
        """A failure is not handled here: the worker's next request meets it too."""
        try:
            await worker.update(weights)
        except (DataLostError, WorkerLostError) as error:
            logger.info("%s could not load version %d at once: %s", worker.name, weights.version, error)


def _without(request: RolloutRequest, complete: RolloutRequest) -> RolloutRequest:
    ids = {group_id for group_id, _ in complete.groups}
    return replace(request, groups=tuple(group for group in request.groups if group[0] not in ids))
