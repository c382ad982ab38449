"""Held-out evaluation: the same rollouts and rewards as training, greedy, no learner."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.stages import RewardStage, RolloutRequest, RolloutStage, Scored, Span
from orchestrator.training.usage import Activity

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out metrics (`accuracy/heldout`, ...) and the time they took."""

    metrics: dict[str, float]
    spans: tuple[Span, ...]


class Evaluator:
    """Asks every held-out prompt once, greedily, and writes what was answered under `directory`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        rollouts: RolloutStage,
        rewards: RewardStage,
        directory: Path,
    ) -> None:
        self._prompts, self._rollouts, self._rewards, self._directory = prompts, rollouts, rewards, directory
        self._sampling = SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens, seed=0)

    async def evaluate(self, step: int) -> Evaluated:
        """Metrics of the newest weights, after `step` updates; none if there is no prompt."""
        shares = [(first, last) for first, last in itertools.pairwise(self._bounds()) if first < last]
        if not shares:
            return Evaluated({}, ())
        parts = await _all([self._ask(first, last, step) for first, last in shares])
        summary = parts[0][0].summary
        for scored, _ in parts[1:]:
            summary = summary + scored.summary
        tickets = [ticket for scored, _ in parts for ticket in scored.tickets]
        await self._rewards.record(step, tickets, self._directory, 0)
        metrics = summary.metrics()
        heldout = {
            "accuracy/heldout": metrics["accuracy/train"],
            "heldout/reward_mean": metrics["reward/mean"],
            "heldout/reflection_fraction": metrics["rollout/reflection_fraction"],
            "heldout/length_mean": metrics["rollout/length_mean"],
            "heldout/truncated_fraction": metrics["rollout/truncated_fraction"],
        }
        return Evaluated(heldout, tuple(span for _, spans in parts for span in spans))

    def _bounds(self) -> list[int]:
        width = self._rollouts.width
        return [len(self._prompts) * share // width for share in range(width + 1)]

    async def _ask(self, first: int, last: int, step: int) -> tuple[Scored, tuple[Span, ...]]:
        groups = tuple((index, self._prompts[index]) for index in range(first, last))
        request = RolloutRequest(groups, step, step, 1, self._sampling, Activity.EVALUATE)
        generated = await self._rollouts.generate(request)
        scored = await self._rewards.score(generated)
        return scored, (*generated.spans, *scored.spans)


async def _all(questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Every answer, or the first error: what is still under way then is cancelled, not left to itself."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
