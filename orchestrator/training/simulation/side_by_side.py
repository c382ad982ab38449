"""A fake rollout worker that samples groups side by side. Most are short, and some take much longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.training.records import BlockRef, WeightVersion
from orchestrator.training.simulation.stages import Draws, SimulatedBlock
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.usage import Role, UsageSink
from orchestrator.training.usage_meter import UsageMeter


@dataclass(frozen=True, slots=True)
class HeavyTail:
    """Lengths of groups: most take `seconds`, and a share of them `factor` times as long."""

    seconds: float = 1.0
    tokens: int = 100
    share: float = 0.1
    factor: float = 10.0
    by_prompt: float = 1.0
    """The probability that a group is as long as the others of its prompt; otherwise it is drawn anew."""
    side_by_side: int = 4
    """How many groups a worker samples at the same time; the others wait in the order of their requests."""
    epoch: int = 256
    """Number of different prompts."""


class SideBySideWorker:
    """A `RolloutWorker` without faults."""

    def __init__(self, name: str, seed: int, tail: HeavyTail, clock: Clock, sink: UsageSink) -> None:
        self.name, self._seed, self._tail = name, seed, tail
        self._meter = UsageMeter(sink, clock, [f"{name}-lease"], name, Role.ROLLOUT)
        self._free = asyncio.Semaphore(tail.side_by_side)

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        """Yield each group when it is complete."""
        tasks = [
            asyncio.ensure_future(self._sample(replace(request, groups=(group,)), weights.version))
            for group in request.groups
        ]
        try:
            for complete in asyncio.as_completed(tasks):
                yield await complete
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def update(self, weights: PublishedWeights) -> None:
        """Do nothing, because there are no weights."""

    async def _sample(self, request: RolloutRequest, version: WeightVersion) -> Generated:
        ((group_id, prompt),) = request.groups
        times = self._times(prompt.prompt_id, group_id)
        tokens = round(self._tail.tokens * times)
        async with self._free:
            with self._meter.span(request.activity, request.step) as measure:
                await asyncio.sleep(self._tail.seconds * times)
                measure.tokens = tokens
        block = BlockRef(SimulatedBlock(version, tokens))
        return Generated(request, block, tokens, self._meter.take())

    def _times(self, prompt_id: str, group_id: int) -> float:
        tail = self._tail
        drawn = Draws(self._seed)
        anew = drawn.uniform(f"group {group_id} differs") >= tail.by_prompt
        u = drawn.uniform(f"group {group_id}" if anew else f"prompt {prompt_id}")
        return tail.factor if u < tail.share else 1.0
