"""Graders turn a `RolloutBlock` into a `ScoreBlock`, even if scorers hang or crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.rewards.checkers import votes
from orchestrator.training.rewards.completion import Completion, completions_of
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.lanes import ScorerLanes
from orchestrator.training.rewards.rubric import Rubric, spelled_answer
from orchestrator.training.rewards.scorers import load_scorer
from orchestrator.training.rewards.scoring import Outcome, ScorerSet

UNTRIED = Outcome(ScoreStatus.TIMEOUT, reason="not scored: too many rollouts of its block hung or crashed")


class RolloutGrader(Protocol):
    """Scores blocks, one after the other."""

    def grade(self, block: RolloutBlock, *, count_votes: bool = False) -> ScoreBlock:
        """Score all rollouts. Failures are reported in `grades` and `reasons`, not raised. With
        `count_votes`, equivalent answers within a group are made equal, for a majority vote.
        """
        ...

    def close(self) -> None:
        """Release the grader's processes."""
        ...


class Grader:
    """Scores in child processes, which are stopped and replaced when they die or when a rollout takes longer
    than `timeout_seconds`. Their output is appended to the file `output`.

    A rollout that could not be scored is tried `retries` more times; then it gets the failure reward. The
    failure of one rollout only costs other rollouts time, and this time is bounded: once a block has lost
    more processes than its share of the failure budget, its remaining rollouts count as failed.

    Rollouts with equal prompt, text, length and finish are scored once, because a score only depends on
    these. The first `grade` raises ConfigError if a scorer cannot be loaded, and WorkerLostError if no
    process can be started.
    """

    def __init__(self, config: RewardConfig, max_new_tokens: int, output: Path | None = None) -> None:
        self._config, self._max_new_tokens = config, max_new_tokens
        self._rubric = Rubric(config, max_new_tokens)
        self._lanes = ScorerLanes(config, self._rubric.scorers, output)

    @property
    def pids(self) -> list[int]:
        """The ids of the scorer processes."""
        return self._lanes.pids

    def grade(self, block: RolloutBlock, *, count_votes: bool = False) -> ScoreBlock:
        return _grade(
            self._config,
            self._rubric,
            list(completions_of(block, self._max_new_tokens, self._config.answer_formats)),
            block,
            self._lanes.score,
            self._lanes.votes if count_votes else None,
        )

    def close(self) -> None:
        """Stop the processes."""
        self._lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class InlineGrader:
    """Scores in this process, where hanging scorers cannot be stopped: for tests,
    simulations and trusted scorers.
    """

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self._config, self._max_new_tokens = config, max_new_tokens
        self._rubric = Rubric(config, max_new_tokens)
        self._scorers = ScorerSet(
            {name: load_scorer(key) for name, key in self._rubric.scorers.items()}, config.timeout_seconds
        )

    def grade(self, block: RolloutBlock, *, count_votes: bool = False) -> ScoreBlock:
        return _grade(
            self._config,
            self._rubric,
            list(completions_of(block, self._max_new_tokens, self._config.answer_formats)),
            block,
            self._score,
            _votes_here if count_votes else None,
        )

    def close(self) -> None:
        pass

    def _score(self, completions: Sequence[Completion]) -> Sequence[Outcome | None]:
        size = self._config.concurrency
        return [
            outcome
            for start in range(0, len(completions), size)
            for outcome in self._scorers.score_now(completions[start : start + size])
        ]


Score = Callable[[Sequence[Completion]], Sequence[Outcome | None]]
"""Scores completions once; None for those that it did not try."""
Vote = Callable[[Completion, Sequence[str]], Sequence[str]]
"""Makes equivalent answers to the prompt of a completion equal."""


def _votes_here(completion: Completion, answers: Sequence[str]) -> Sequence[str]:
    return votes(answers, completion.prompt.reference)


def _grade(
    config: RewardConfig,
    rubric: Rubric,
    completions: Sequence[Completion],
    block: RolloutBlock,
    score: Score,
    vote: Vote | None,
) -> ScoreBlock:
    """Score equal rollouts once, retry failed ones, and extract the answers."""
    keys = [(each.prompt.prompt_id, each.text, each.length, each.finish) for each in completions]
    distinct = dict(zip(keys, completions, strict=True))
    outcomes = dict(zip(distinct, _with_retries(list(distinct.values()), config.retries, score), strict=True))
    answers = [spelled_answer(completion) for completion in completions]
    if vote is not None:
        for first in range(0, len(answers), block.group_size):
            group = answers[first : first + block.group_size]
            if len(set(group) - {""}) > 1:
                spelled = [each.answer or "" for each in completions[first : first + block.group_size]]
                answers[first : first + block.group_size] = vote(completions[first], spelled)
    return rubric.scores(block, [outcomes[key] for key in keys], answers)


def _with_retries(completions: Sequence[Completion], retries: int, score: Score) -> list[Outcome]:
    outcomes = [UNTRIED] * len(completions)
    for _ in range(1 + retries):
        rows = [row for row, outcome in enumerate(outcomes) if outcome.status is not ScoreStatus.OK]
        if not rows:
            break
        for row, outcome in zip(rows, score([completions[row] for row in rows]), strict=True):
            outcomes[row] = outcome or outcomes[row]
    return outcomes
