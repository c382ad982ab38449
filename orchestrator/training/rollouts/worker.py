"""A rollout worker: the engines of one process, the requests that they work on, and the weights they hold.

A request is several groups. The worker gives all of them to its engine at once, next to those of other
requests, and hands over the complete ones every `stream_seconds`. New weights are loaded one version after
the other; what happens to running rollouts depends on `rollout.on_new_weights`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field

from orchestrator.training.records import RolloutBlock
from orchestrator.training.rollouts.blocks import assemble_block
from orchestrator.training.rollouts.config import OnNewWeights
from orchestrator.training.rollouts.engine import Engine, SampledGroup, SampleRequest
from orchestrator.training.stages import PublishedWeights, RolloutRequest, Span
from orchestrator.training.tensors.buckets import Bucket
from orchestrator.training.usage import Activity
from orchestrator.training.usage_meter import UsageMeter

FetchWeights = Callable[[PublishedWeights], Awaitable[Generator[Bucket]]]
"""Brings published weights to this process and returns their buckets. Raises WeightsNotFoundError if the
weights are gone.
"""


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines of a worker; the same one twice, unless training replays worked solutions."""

    training: Engine
    evaluation: Engine

    def serving(self, activity: Activity) -> Engine:
        """The engine that serves requests of this activity."""
        return self.evaluation if activity is Activity.EVALUATE else self.training

    def distinct(self) -> list[Engine]:
        return [self.training] if self.training is self.evaluation else [self.training, self.evaluation]


@dataclass(frozen=True, slots=True)
class PortionInfo:
    """What the controller needs to know about a portion of a request."""

    groups: tuple[int, ...]
    """Ids of the groups in the block, in order."""
    tokens: int
    spans: tuple[Span, ...]
    is_last: bool


Portion = tuple[RolloutBlock, PortionInfo]


@dataclass(slots=True)
class _Progress:
    """A request in progress. `tasks` sample the groups that were not handed over yet, in order."""

    request: RolloutRequest
    handed_over: float
    since_ns: int | None = None
    """When the last span of the request ended. The engine goes on while its result is on the way."""
    tasks: list[asyncio.Task[SampledGroup]] = field(default_factory=list[asyncio.Task[SampledGroup]])


class EngineWorker:
    """Runs requests on engines. Belongs to one event loop. The caller identifies requests by keys."""

    def __init__(
        self,
        engines: Engines,
        fetch: FetchWeights,
        meter: UsageMeter,
        on_new_weights: OnNewWeights,
        stream_seconds: float,
    ) -> None:
        self._engines, self._fetch, self._meter = engines, fetch, meter
        self._on_new_weights, self._stream_seconds = on_new_weights, stream_seconds
        self._requests: dict[int, _Progress] = {}
        self._updating = asyncio.Lock()
        self._held = -1
        """Sequence number of the weights that the engines hold; -1 if they were never loaded, or in part."""

    async def generate(self, key: int, request: RolloutRequest, weights: PublishedWeights) -> Portion:
        """Start a request with these weights or newer ones, and wait for its first portion (see `collect`).
        Raises WeightsNotFoundError if they are needed and gone, and what `Engine.sample` raises.
        """
        self._requests[key] = progress = _Progress(request, asyncio.get_running_loop().time())
        try:
            await self.update(weights)
        except BaseException:
            self.cancel(key)
            raise
        if key in self._requests:  # it may have been cancelled meanwhile
            engine = self._engines.serving(request.activity)
            progress.tasks = [
                asyncio.ensure_future(
                    engine.sample(
                        SampleRequest(
                            group_id,
                            prompt,
                            request.group_size,
                            request.sampling,
                            request.expected_tokens.get(group_id, 0),
                        )
                    )
                )
                for group_id, prompt in request.groups
            ]
        return await self.collect(key)

    async def collect(self, key: int) -> Portion:
        """Wait for the next portion of a request: all of its remaining groups, or those that are complete
        `stream_seconds` after the previous portion, at least one. Raises KeyError if it was cancelled.
        """
        progress = self._requests[key]
        try:
            request = progress.request
            with self._meter.span(request.activity, request.step, progress.since_ns) as measure:
                done = await self._complete(progress)
                block = assemble_block([task.result() for task in done])
                measure.tokens = len(block.tokens)
        except BaseException:
            self.cancel(key)
            raise
        complete = set(done)
        progress.tasks = [task for task in progress.tasks if task not in complete]
        progress.since_ns = measure.end_ns
        progress.handed_over = asyncio.get_running_loop().time()
        is_last = not progress.tasks
        if is_last:
            self._requests.pop(key, None)
        ids = tuple(int(group_id) for group_id in block.group_ids)
        return block, PortionInfo(ids, len(block.tokens), self._meter.take(), is_last)

    def cancel(self, key: int) -> None:
        """Drop the remaining groups of a request. Does nothing if the request is complete."""
        progress = self._requests.pop(key, None)
        for task in progress.tasks if progress else ():
            task.cancel()

    async def update(self, weights: PublishedWeights) -> None:
        """Load the weights, unless the engines hold these or newer ones. Updates run one after the other."""
        async with self._updating:
            if weights.sequence <= self._held:
                return
            if self._on_new_weights == "finish":
                await self._drain()
            with self._meter.span(Activity.SYNC, weights.version):
                for engine in self._engines.distinct():
                    with contextlib.closing(await self._fetch(weights)) as buckets:
                        self._held = -1  # until the last bucket is loaded, the engine holds a mixture
                        recompute = self._on_new_weights == "recompute"
                        await engine.update_weights(weights.version, buckets, recompute=recompute)
            self._held = weights.sequence

    async def _complete(self, progress: _Progress) -> list[asyncio.Task[SampledGroup]]:
        """Wait for groups of the next portion; their tasks, in order."""
        tasks = progress.tasks
        seconds = progress.handed_over + self._stream_seconds - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait(tasks, timeout=max(0.0, seconds), return_when=asyncio.FIRST_EXCEPTION)
        if not done:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return [task for task in tasks if task in done]

    async def _drain(self) -> None:
        """Wait until no group is in progress. Requests that arrive meanwhile wait for the update."""
        while running := [
            task for progress in self._requests.values() for task in progress.tasks if not task.done()
        ]:
            await asyncio.wait(running)
