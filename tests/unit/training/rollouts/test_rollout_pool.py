"""The rollout workers as one stage: which weights a request is sampled with."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.clock import FakeClock
from orchestrator.errors import DataLostError
from orchestrator.training.records import BlockRef, SamplingParams
from orchestrator.training.rollouts.pool import RolloutPool
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest, WeightRef
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.waiting import Waits

REQUEST = RolloutRequest((), 0, 1, SamplingParams(1.0, 1.0, 4, 0))


class Forgetful:
    """A worker whose weights of version 0 are gone by the time it reads them."""

    name = "rollout-0"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.publish_meanwhile = lambda: None

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> Generated:
        self.asked.append(weights.version)
        self.publish_meanwhile()
        if weights.version == 0:
            raise DataLostError(self.name, "weights of version 0 are gone")
        return Generated(request, BlockRef("block"), 0, ())


async def _replace(worker: Forgetful) -> Forgetful:
    raise AssertionError("the worker is well")


def _pool(worker: Forgetful) -> RolloutPool[Forgetful]:
    waits = Waits(lambda event: None, FakeClock())
    return RolloutPool(WorkerPool([worker], _replace, 0, lambda lost: None), waits)


def test_superseded_weights_that_are_gone_are_replaced_by_the_newest() -> None:
    worker = Forgetful()
    pool = _pool(worker)
    pool.use(PublishedWeights(0, WeightRef("handle 0")))
    worker.publish_meanwhile = lambda: pool.use(PublishedWeights(2, WeightRef("handle 2")))
    asyncio.run(pool.generate(REQUEST))
    assert worker.asked == [0, 2]


def test_losing_the_newest_weights_is_lost_data_and_not_a_lost_worker() -> None:
    worker = Forgetful()
    pool = _pool(worker)
    pool.use(PublishedWeights(0, WeightRef("handle 0")))
    with pytest.raises(DataLostError, match="version 0 are gone"):
        asyncio.run(pool.generate(REQUEST))
    assert worker.asked == [0]
