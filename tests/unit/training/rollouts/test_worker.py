"""A rollout worker without Ray: portions of requests, and when new weights are loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import PromptTooLongError
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.rollouts.config import OnNewWeights
from orchestrator.training.rollouts.engine import SampledGroup, SampleRequest
from orchestrator.training.rollouts.scripted import ScriptedEngine
from orchestrator.training.rollouts.worker import Engines, EngineWorker
from orchestrator.training.simulation.virtual_time import run_in_virtual_time
from orchestrator.training.stages import PublishedWeights, RolloutRequest, WeightRef
from orchestrator.training.tensors.buckets import Bucket
from orchestrator.training.usage import Activity, MemorySink, Role, SpanRecorded
from orchestrator.training.usage_meter import UsageMeter
from orchestrator.training.weights.channel import WeightsNotFoundError

SAMPLING = SamplingParams(1.0, 1.0, 4, 0)


class SlowEngine(ScriptedEngine):
    """Group i takes i seconds. Notes when weights are loaded."""

    def __init__(self) -> None:
        super().__init__(context=32)
        self.loaded: list[tuple[float, int, bool]] = []
        self.cancelled: list[int] = []

    async def sample(self, request: SampleRequest) -> SampledGroup:
        try:
            await asyncio.sleep(float(request.group_id))
        except asyncio.CancelledError:
            self.cancelled.append(request.group_id)
            raise
        return await super().sample(request)

    async def update_weights(self, version: int, buckets: Iterable[Bucket], *, recompute: bool) -> None:
        await asyncio.sleep(0.25)
        await super().update_weights(version, buckets, recompute=recompute)
        self.loaded.append((now(), version, recompute))


class Fetch:
    """The published weights, some of which may be gone."""

    def __init__(self) -> None:
        self.gone: set[int] = set()

    async def __call__(self, weights: PublishedWeights) -> Generator[Bucket]:
        if weights.version in self.gone:
            raise WeightsNotFoundError(weights.version, "its publisher is gone")
        return (bucket for bucket in list[Bucket]())


def now() -> float:
    return asyncio.get_running_loop().time()


def weights(version: int, sequence: int | None = None) -> PublishedWeights:
    return PublishedWeights(version, WeightRef(None), sequence=version if sequence is None else sequence)


def request(*group_ids: int, activity: Activity = Activity.GENERATE) -> RolloutRequest:
    groups = tuple((group_id, Prompt(f"p/{group_id}", "1+2=", {})) for group_id in group_ids)
    return RolloutRequest(groups, 7, 2, SAMPLING, activity)


class Bench:
    """A worker and what it emits."""

    def __init__(self, on_new_weights: OnNewWeights = "finish", stream_seconds: float = 1.5) -> None:
        self.engine, self.sink, self.fetch = SlowEngine(), MemorySink(), Fetch()
        meter = UsageMeter(self.sink, SystemClock(), ["lease"], "rollout-0", Role.ROLLOUT)
        self.worker = EngineWorker(
            Engines(self.engine, self.engine), self.fetch, meter, on_new_weights, stream_seconds
        )

    async def run(self, key: int, wanted: RolloutRequest, using: PublishedWeights) -> list[tuple[float, ...]]:
        """For every portion the time and its groups."""
        block, info = await self.worker.generate(key, wanted, using)
        portions = [(now(), *info.groups)]
        assert block.group_ids.tolist() == list(info.groups)
        while not info.is_last:
            block, info = await self.worker.collect(key)
            portions.append((now(), *info.groups))
            assert block.group_ids.tolist() == list(info.groups)
        return portions


def test_complete_groups_are_handed_over_at_intervals() -> None:
    """Weights take 0.25 s. After 1.5 s one group is complete, so it does not wait for the others; then there
    is nothing until the next is complete.
    """

    async def main() -> None:
        portions = await Bench().run(0, request(6, 1, 2, 9), weights(0))
        assert portions == [(1.5, 1), (3.0, 2), (6.25, 6), (9.25, 9)]

    run_in_virtual_time(main())


def test_a_request_that_is_complete_earlier_is_one_portion_in_its_order() -> None:
    async def main() -> None:
        portions = await Bench(stream_seconds=60.0).run(0, request(6, 1, 2), weights(0))
        assert portions == [(6.25, 6, 1, 2)]

    run_in_virtual_time(main())


def test_requests_share_the_engine_and_are_kept_apart_by_their_keys() -> None:
    async def main() -> None:
        bench = Bench()
        found = await asyncio.gather(
            bench.run(0, request(1, 2), weights(0)), bench.run(1, request(1, 3), weights(0))
        )
        assert found == [[(1.5, 1), (2.25, 2)], [(1.5, 1), (3.25, 3)]]
        assert len(bench.engine.loaded) == 1

    run_in_virtual_time(main())


def test_running_rollouts_finish_with_their_weights() -> None:
    """The second request arrives after 1 s and needs the next version, so it waits for the first one."""

    async def main() -> None:
        bench = Bench(stream_seconds=60.0)
        first = asyncio.ensure_future(bench.worker.generate(0, request(2, 5), weights(0)))
        await asyncio.sleep(1.0)
        second = asyncio.ensure_future(bench.worker.generate(1, request(1), weights(1)))
        third = asyncio.ensure_future(bench.worker.generate(2, request(1), weights(0)))
        (block, _), (newer, _), (last, _) = await asyncio.gather(first, second, third)
        assert bench.engine.loaded == [(0.25, 0, False), (5.5, 1, False)]
        assert set(block.versions.tolist()) == {0}
        assert set(newer.versions.tolist()) == {1}
        assert set(last.versions.tolist()) == {1}  # newer than it asked for, never older

    run_in_virtual_time(main())


@pytest.mark.parametrize("on_new_weights", ["continue", "recompute"])
def test_weights_that_are_pushed_are_loaded_while_rollouts_run(on_new_weights: OnNewWeights) -> None:
    async def main() -> None:
        bench = Bench(on_new_weights, stream_seconds=60.0)
        first = asyncio.ensure_future(bench.worker.generate(0, request(5), weights(0)))
        await asyncio.sleep(1.0)
        await bench.worker.update(weights(1))
        assert now() == 1.25
        await first
        assert bench.engine.loaded == [
            (0.25, 0, on_new_weights == "recompute"),
            (1.25, 1, on_new_weights == "recompute"),
        ]

    run_in_virtual_time(main())


def test_weights_that_were_overtaken_are_not_loaded() -> None:
    """The order of publishing counts, not the version: a restored learner publishes older versions."""

    async def main() -> None:
        bench = Bench("continue")
        for version, sequence in ((8, 3), (9, 2), (8, 3), (5, 4)):
            await bench.worker.update(weights(version, sequence))
        assert [version for _, version, _ in bench.engine.loaded] == [8, 5]

    run_in_virtual_time(main())


def test_weights_that_are_gone_are_an_error_and_can_be_loaded_later() -> None:
    async def main() -> None:
        bench = Bench()
        bench.fetch.gone = {0}
        with pytest.raises(WeightsNotFoundError, match="version 0 are gone"):
            await bench.worker.generate(0, request(1), weights(0))
        bench.fetch.gone = set()
        assert await bench.run(0, request(1), weights(0)) == [(1.25, 1)]

    run_in_virtual_time(main())


def test_a_cancelled_request_drops_the_groups_that_are_left() -> None:
    async def main() -> None:
        bench = Bench()
        _, info = await bench.worker.generate(0, request(1, 9), weights(0))
        assert info.groups == (1,) and not info.is_last
        bench.worker.cancel(0)
        bench.worker.cancel(0)
        await asyncio.sleep(0)
        assert bench.engine.cancelled == [9]
        with pytest.raises(KeyError):
            await bench.worker.collect(0)
        await bench.worker.update(weights(1))  # nothing is left to wait for
        assert now() == 1.75

    run_in_virtual_time(main())


def test_an_error_of_one_group_ends_the_request_at_once() -> None:
    async def main() -> None:
        bench = Bench(stream_seconds=60.0)
        long = (1, Prompt("p/1", "1" * 32, {}))
        wanted = RolloutRequest((request(9).groups[0], long), 7, 2, SAMPLING)
        with pytest.raises(PromptTooLongError, match="p/1"):
            await bench.worker.generate(0, wanted, weights(0))
        assert now() == 1.25
        await asyncio.sleep(0)
        assert bench.engine.cancelled == [9]

    run_in_virtual_time(main())


def test_every_portion_is_booked_with_its_activity_step_and_tokens() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.run(0, request(1, 2), weights(0))
        await bench.run(1, request(1, activity=Activity.EVALUATE), weights(0))
        spans = [event for event in bench.sink.events if isinstance(event, SpanRecorded)]
        assert [(span.activity, span.step) for span in spans] == [
            (Activity.SYNC, 0),
            (Activity.GENERATE, 7),
            (Activity.GENERATE, 7),
            (Activity.EVALUATE, 7),
        ]
        assert all(span.tokens > 0 for span in spans[1:])

    run_in_virtual_time(main())


def test_the_time_between_two_portions_is_the_request_s_too() -> None:
    """The engine goes on while a portion is on its way and the next one is asked for."""

    async def main() -> None:
        bench = Bench()
        _, info = await bench.worker.generate(0, request(1, 5), weights(0))
        assert not info.is_last
        await asyncio.sleep(1.0)
        await bench.worker.collect(0)
        spans = [event for event in bench.sink.events if isinstance(event, SpanRecorded)]
        assert [span.activity for span in spans] == [Activity.SYNC, Activity.GENERATE, Activity.GENERATE]
        assert spans[2].start_ns == spans[1].end_ns

    run_in_virtual_time(main())
