"""The rollout workers as one stage: which weights a request is sampled with, and what a lost worker costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from orchestrator.clock import FakeClock
from orchestrator.errors import DataLostError, WorkerLostError
from orchestrator.training.records import BlockRef, Prompt, SamplingParams
from orchestrator.training.rollouts.pool import RolloutPool
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest, WeightRef
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.waiting import Waits

GROUPS = tuple((index, Prompt(f"p/{index}", "1+2=", {})) for index in range(4))
REQUEST = RolloutRequest(GROUPS, 0, 2, SamplingParams(1.0, 1.0, 4, 0))


def only(request: RolloutRequest, *group_ids: int) -> Generated:
    groups = tuple(group for group in request.groups if group[0] in group_ids)
    return Generated(replace(request, groups=groups), BlockRef(group_ids), 0, ())


class Forgetful:
    """A worker whose weights of version 0 are gone by the time it reads them."""

    name = "rollout-0"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.publish_meanwhile = lambda: None

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        self.asked.append(weights.version)
        self.publish_meanwhile()
        if weights.version == 0:
            raise DataLostError(self.name, "weights of version 0 are gone")
        yield only(request, *range(4))

    async def update(self, weights: PublishedWeights) -> None: ...


class Streaming:
    """A worker that yields one group after the other, and may die after some of them."""

    def __init__(self, name: str, dies_after: int | None = None) -> None:
        self.name, self._dies_after = name, dies_after
        self.sampled: list[int] = []
        self.updates: list[tuple[int, int]] = []
        self.closed = 0

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        try:
            for count, (group_id, _) in enumerate(request.groups):
                if count == self._dies_after:
                    self._dies_after = None
                    raise WorkerLostError(self.name, "died")
                await asyncio.sleep(0)
                self.sampled.append(group_id)
                yield only(request, group_id)
        finally:
            self.closed += 1

    async def update(self, weights: PublishedWeights) -> None:
        self.updates.append((weights.version, weights.sequence))


async def _replace(worker: Streaming) -> Streaming:
    return worker


async def _never(worker: Forgetful) -> Forgetful:
    raise AssertionError("the worker is well")


def forgetful_pool(worker: Forgetful) -> RolloutPool[Forgetful]:
    waits = Waits(lambda event: None, FakeClock())
    return RolloutPool(WorkerPool([worker], _never, 0, lambda lost: None), waits)


def streaming_pool(*workers: Streaming, push: bool = False, capacity: int = 8) -> RolloutPool[Streaming]:
    waits = Waits(lambda event: None, FakeClock())
    pool = WorkerPool(list(workers), _replace, 1, lambda lost: None, capacity)
    return RolloutPool(pool, waits, push=push)


async def all_groups(pool: RolloutPool[Streaming] | RolloutPool[Forgetful]) -> list[int]:
    return [
        group_id async for generated in pool.generate(REQUEST) for group_id, _ in generated.request.groups
    ]


def test_superseded_weights_that_are_gone_are_replaced_by_the_newest() -> None:
    worker = Forgetful()
    pool = forgetful_pool(worker)
    pool.use(PublishedWeights(0, WeightRef("handle 0")))
    worker.publish_meanwhile = lambda: pool.use(PublishedWeights(2, WeightRef("handle 2")))
    assert asyncio.run(all_groups(pool)) == [0, 1, 2, 3]
    assert worker.asked == [0, 2]


def test_losing_the_newest_weights_is_lost_data_and_not_a_lost_worker() -> None:
    worker = Forgetful()
    pool = forgetful_pool(worker)
    pool.use(PublishedWeights(0, WeightRef("handle 0")))
    with pytest.raises(DataLostError, match="version 0 are gone"):
        asyncio.run(all_groups(pool))
    assert worker.asked == [0]


def test_groups_that_a_lost_worker_had_completed_are_not_sampled_again() -> None:
    async def main() -> None:
        first, second = Streaming("rollout-0", dies_after=3), Streaming("rollout-1")
        pool = streaming_pool(first, second)
        pool.use(PublishedWeights(0, WeightRef("handle 0")))
        assert await all_groups(pool) == [0, 1, 2, 3]
        assert (first.sampled, second.sampled) == ([0, 1, 2], [3])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("capacity", "sampled"), [(9, [0, 0, 1, 1, 2, 2, 3, 3]), (1, [0, 1, 2, 3, 0, 1, 2, 3])]
)
def test_a_worker_gets_another_request_while_it_has_capacity(capacity: int, sampled: list[int]) -> None:
    """A request has 8 rollouts."""

    async def main() -> None:
        worker = Streaming("rollout-0")
        pool = streaming_pool(worker, capacity=capacity)
        pool.use(PublishedWeights(0, WeightRef("handle 0")))
        await asyncio.gather(all_groups(pool), all_groups(pool))
        assert worker.sampled == sampled

    asyncio.run(main())


def test_closing_a_request_early_ends_it_on_its_worker_and_frees_the_worker() -> None:
    async def main() -> None:
        worker = Streaming("rollout-0")
        pool = streaming_pool(worker, capacity=1)
        pool.use(PublishedWeights(0, WeightRef("handle 0")))
        portions = pool.generate(REQUEST)
        await anext(portions)
        await portions.aclose()
        assert worker.closed == 1 and worker.sampled == [0]
        assert await all_groups(pool) == [0, 1, 2, 3]

    asyncio.run(main())


@pytest.mark.parametrize("push", [False, True])
def test_weights_are_sent_to_running_workers_only_if_wanted(push: bool) -> None:
    async def main() -> None:
        workers = [Streaming("rollout-0"), Streaming("rollout-1")]
        pool = streaming_pool(*workers, push=push)
        for version in (3, 4, 4):  # a learner that was restored publishes version 4 again
            pool.use(PublishedWeights(version, WeightRef("handle")))
        await asyncio.sleep(0)
        expected = [(3, 0), (4, 1), (4, 2)] if push else []
        assert [worker.updates for worker in workers] == [expected, expected]

    asyncio.run(main())
