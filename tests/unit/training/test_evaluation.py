"""The evaluation with fake stages that record their requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import FakeClock
from orchestrator.training.evaluation import SEED, Evaluator, SampledAnswers
from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.records import (
    BlockRef,
    GroupTicket,
    Prompt,
    RecordKind,
    SamplingParams,
    ScoreRef,
)
from orchestrator.training.simulation.run import Trace
from orchestrator.training.simulation.stages import CountingSummary
from orchestrator.training.simulation.virtual_time import run_in_virtual_time
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest, Scored, Span
from orchestrator.training.usage import Activity

BLOCK, SCORES = BlockRef("block"), ScoreRef("scores")
SAMPLING = SamplingParams(
    0.7, 0.9, 32, SEED, top_k=5, min_p=0.1, repetition_penalty=1.1, stop=("\n\n",), stop_token_ids=(4,)
)
GREEDY = SampledAnswers(count=0, sampling=SAMPLING)


class Rollouts:
    def __init__(self, width: int) -> None:
        self.width = width
        self.requests: list[RolloutRequest] = []
        self.ended = 0

    def use(self, weights: PublishedWeights) -> None: ...

    async def generate(self, request: RolloutRequest) -> AsyncGenerator[Generated]:
        self.requests.append(request)
        try:
            await asyncio.sleep(float(len(self.requests)))
        finally:
            self.ended += 1
        yield Generated(request, BlockRef("block"), 10, (Span(Activity.EVALUATE, 0, 1),))


class Rewards:
    def __init__(self, fail: bool = False) -> None:
        self.recorded: list[tuple[int, list[int], Path, str, int]] = []
        self._fail = fail

    async def score(self, generated: Generated) -> Scored:
        if self._fail:
            raise ValueError("a bug")
        tickets = tuple(
            GroupTicket(group_id, prompt.prompt_id, 3, 5, 0.5, False, row, BLOCK, SCORES)
            for row, (group_id, prompt) in enumerate(generated.request.groups)
        )
        count = len(tickets)
        return Scored(tickets, CountingSummary(count, 5 * count), (Span(Activity.SCORE, 1, 2),))

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        self.recorded.append((step, sorted(ticket.group_id for ticket in tickets), directory, kind, sample))
        return []


def evaluator(
    count: int, sampled: SampledAnswers, rollouts: Rollouts, rewards: Rewards, directory: Path
) -> Evaluator:
    recorder = TolerantRecorder(rewards, Trace(FakeClock()), budget=0)
    return Evaluator(prompts(count), sampled, rollouts, rewards, recorder, directory)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"task/heldout/{index}", "?", {}) for index in range(count)]


@pytest.mark.parametrize(("count", "width"), [(1, 4), (3, 4), (4, 4), (10, 4), (10, 1)])
def test_every_prompt_is_answered_once_greedily(count: int, width: int, tmp_path: Path) -> None:
    rollouts, rewards = Rollouts(width), Rewards()
    evaluated = run_in_virtual_time(evaluator(count, GREEDY, rollouts, rewards, tmp_path).evaluate(3))
    asked = [prompt.prompt_id for request in rollouts.requests for _, prompt in request.groups]
    assert asked == [f"task/heldout/{index}" for index in range(count)]
    sizes = [len(request.groups) for request in rollouts.requests]
    assert len(sizes) == min(count, width)
    assert max(sizes) - min(sizes) <= 1
    for request in rollouts.requests:
        assert (request.step, request.group_size, request.activity) == (3, 1, Activity.EVALUATE)
        # Penalties and ends are those of the sampled answers; nothing is truncated.
        assert request.sampling == SamplingParams(
            0.0, 1.0, 32, 0, repetition_penalty=1.1, stop=("\n\n",), stop_token_ids=(4,)
        )
    assert rewards.recorded == [(3, list(range(count)), tmp_path, "heldout", 0)]
    assert evaluated.metrics["heldout/length_mean"] == 5.0
    assert evaluated.metrics["accuracy/heldout"] == 0.5
    assert len(evaluated.spans) == 2 * min(count, width)


def test_sampled_answers_are_requested_in_addition(tmp_path: Path) -> None:
    rollouts, rewards = Rollouts(2), Rewards()
    sampled = SampledAnswers(count=6, sampling=SAMPLING)
    evaluated = run_in_virtual_time(evaluator(5, sampled, rollouts, rewards, tmp_path).evaluate(3))
    asked = [
        (request.group_size, request.sampling.temperature, request.sampling.top_p)
        for request in rollouts.requests
    ]
    assert asked == [(1, 0.0, 1.0), (1, 0.0, 1.0), (6, 0.7, 0.9), (6, 0.7, 0.9)]
    assert [request.sampling for request in rollouts.requests[2:]] == [SAMPLING] * 2
    assert [request.samples_heldout for request in rollouts.requests] == [False, False, True, True]
    assert [[group for group, _ in request.groups] for request in rollouts.requests] == [
        [0, 1],
        [2, 3, 4],
    ] * 2
    # One seed for every request, however the prompts are split: draws differ by group.
    assert rollouts.requests[2].sampling.seed == rollouts.requests[3].sampling.seed
    assert rewards.recorded == [(3, list(range(5)), tmp_path, "heldout", 0)]  # the greedy ones
    assert evaluated.metrics["heldout/length_mean"] == 5.0
    assert len(evaluated.spans) == 8


def test_a_rubric_without_accuracy_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingSummary, "metrics", lambda _: {"reward/mean": 0.5})
    evaluated = run_in_virtual_time(evaluator(2, GREEDY, Rollouts(1), Rewards(), tmp_path).evaluate(0))
    assert evaluated.metrics == {"heldout/reward_mean": 0.5}


def test_without_prompts_there_are_no_metrics(tmp_path: Path) -> None:
    rollouts, rewards = Rollouts(2), Rewards()
    evaluated = run_in_virtual_time(evaluator(0, GREEDY, rollouts, rewards, tmp_path).evaluate(0))
    assert (evaluated.metrics, evaluated.spans) == ({}, ())
    assert rollouts.requests == rewards.recorded == []


def test_an_error_cancels_the_remaining_requests(tmp_path: Path) -> None:
    async def main() -> None:
        rollouts = Rollouts(4)
        with pytest.raises(ValueError, match="a bug"):
            await evaluator(8, GREEDY, rollouts, Rewards(fail=True), tmp_path).evaluate(0)
        assert rollouts.ended == 4
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_in_virtual_time(main())
