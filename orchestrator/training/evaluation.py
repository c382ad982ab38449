"""Held-out evaluation: the same rollouts and rewards as training, without a learner.

Every prompt is answered once, greedily, for `accuracy/heldout`. For pass@k and maj@k, each prompt gets
additional answers, sampled with their own temperature and top-p.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.stages import Generated, RewardStage, RolloutRequest, RolloutStage, Scored, Span
from orchestrator.training.usage import Activity

T = TypeVar("T")
Answered = tuple[Scored, tuple[Span, ...]]
"""The scored answers to some of the prompts, and the spans of time they took."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out metrics (`accuracy/heldout`, ...), their spans of time, and the size of the answers."""

    metrics: dict[str, float]
    spans: tuple[Span, ...]
    groups: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """How many answers to each prompt are sampled in addition to the greedy one, and how. `count` 0 disables
    sampling. The greedy answers use the same penalties, limits and stop strings, but neither
    temperature nor truncation.
    """

    count: int
    sampling: SamplingParams


SEED = 0x65766C
"""The seed of every evaluation of every run, so that two evaluations only differ by the weights. It is an
unlikely seed of a run, whose groups have the same ids.
"""

HELDOUT = {
    "accuracy/heldout": "accuracy/train",
    "accuracy/heldout_n": "accuracy/train_n",
    "heldout/count": "rollout/count",
    "heldout/reward_mean": "reward/mean",
    "heldout/reflection_fraction": "rollout/reflection_fraction",
    "heldout/length_mean": "rollout/length_mean",
    "heldout/truncated_fraction": "rollout/truncated_fraction",
}
"""Held-out metrics, and their names in a summary of the greedy answers."""


class Evaluator:
    """Answers every held-out prompt once, greedily, and records the answers under `directory`. Sampled
    answers only enter metrics (`eval/pass_at_<k>`, `eval/maj_at_<k>`).
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampled: SampledAnswers,
        rollouts: RolloutStage,
        rewards: RewardStage,
        recorder: TolerantRecorder,
        directory: Path,
    ) -> None:
        self._prompts, self._rollouts, self._rewards = prompts, rollouts, rewards
        self._recorder, self._directory = recorder, directory
        self._sampled = sampled

    async def evaluate(self, step: int) -> Evaluated:
        """Compute the metrics of the newest weights, after `step` updates; none if there are no prompts.
        Raises DataLostError if answers, or the weights to sample them with, were lost.
        """
        shares = [(first, last) for first, last in itertools.pairwise(self._bounds()) if first < last]
        if not shares:
            return Evaluated({}, ())
        questions = [self._ask(share, step, 1, self._greedy_sampling()) for share in shares]
        if self._sampled.count:
            questions += [
                self._ask(share, step, self._sampled.count, self._sampled.sampling) for share in shares
            ]
        parts = await _all(questions)
        answered = [part for share in parts[: len(shares)] for part in share]
        sampled = [part for share in parts[len(shares) :] for part in share]
        tickets = sorted(
            (ticket for scored, _ in answered for ticket in scored.tickets), key=lambda each: each.group_id
        )
        await self._recorder.record(step, tickets, self._directory, "heldout", 0)
        once, often = _sums(answered), _sums(sampled)
        metrics = {name: once[source] for name, source in HELDOUT.items() if source in once}
        metrics |= {name: value for name, value in often.items() if name.startswith("eval/")}
        groups = [ticket for scored, _ in answered + sampled for ticket in scored.tickets]
        return Evaluated(
            metrics,
            tuple(span for _, spans in answered + sampled for span in spans),
            len(groups),
            sum(ticket.tokens for ticket in groups),
        )

    def _greedy_sampling(self) -> SamplingParams:
        return replace(self._sampled.sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)

    def _bounds(self) -> list[int]:
        width = self._rollouts.width
        return [len(self._prompts) * share // width for share in range(width + 1)]

    async def _ask(
        self, share: tuple[int, int], step: int, answers: int, sampling: SamplingParams
    ) -> list[Answered]:
        groups = tuple((index, self._prompts[index]) for index in range(*share))
        request = RolloutRequest(groups, step, answers, sampling, Activity.EVALUATE)
        scoring: list[asyncio.Task[Answered]] = []
        try:
            async with contextlib.aclosing(self._rollouts.generate(request)) as portions:
                scoring.extend([asyncio.ensure_future(self._score(each)) async for each in portions])
            return await asyncio.gather(*scoring)
        finally:
            await _cancel(scoring)

    async def _score(self, generated: Generated) -> Answered:
        scored = await self._rewards.score(generated)
        return scored, (*generated.spans, *scored.spans)


def _sums(parts: Sequence[Answered]) -> dict[str, float]:
    """Merge the summaries of all parts and return their metrics; empty without parts."""
    if not parts:
        return {}
    summary = parts[0][0].summary
    for scored, _ in parts[1:]:
        summary = summary + scored.summary
    return summary.metrics()


async def _all(questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all answers. On the first error, cancel the remaining ones and raise it."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
