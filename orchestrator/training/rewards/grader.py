"""Graders: a `RolloutBlock` in, a `ScoreBlock` out, whatever the scorers do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from orchestrator.training.records import Grade, RolloutBlock, ScoreBlock
from orchestrator.training.rewards.completion import Completion, completions_of
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.process import ScorerProcess
from orchestrator.training.rewards.rubric import Outcome, Rubric, apply_scorers
from orchestrator.training.rewards.scorers import load_scorer

FEWEST_LOST_CHILDREN = 4
"""So many lost children are tolerated in any block, however small it is."""

log = logging.getLogger(__name__)


class RolloutGrader(Protocol):
    """Grades blocks, one after the other."""

    def grade(self, block: RolloutBlock) -> ScoreBlock:
        """The scores of all rollouts. What can't be graded is in `grades` and `reasons`, not raised."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class Grader:
    """Scores in a child process that is killed and replaced when a rollout takes longer than
    `timeout_seconds`, or when it dies.

    A rollout that could not be graded is tried again `retries` times; then it gets the failure reward. One
    rollout's failure costs no other rollout anything but time; and the time is bounded: a block that cost
    more children than its share of the failure budget is not graded further, what is left of it counts as
    failed.

    Rollouts that are equal in prompt, text, length and finish are scored once: a scorer is a function of
    them. Raises ConfigError from the first `grade` if a scorer can't be loaded, WorkerLostError if no child
    can be started.
    """

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self._config, self._max_new_tokens = config, max_new_tokens
        self._rubric = Rubric(config, max_new_tokens)
        self._process = ScorerProcess(self._rubric.scorers, config.memory_bytes)

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._process.pid

    def grade(self, block: RolloutBlock) -> ScoreBlock:
        """The scores of all rollouts; see `RolloutGrader`."""
        return self._rubric.scores(block, _each_once(block, self._max_new_tokens, self._outcomes))

    def close(self) -> None:
        """End the child."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _outcomes(self, completions: Sequence[Completion]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(completions)
        for _ in range(1 + self._config.retries):
            self._grade_failed(completions, outcomes)
        untried = Outcome(Grade.TIMEOUT, reason="not tried: too many rollouts of its block hung or crashed")
        return [untried if outcome is None else outcome for outcome in outcomes]

    def _grade_failed(self, completions: Sequence[Completion], outcomes: list[Outcome | None]) -> None:
        """Grade once more what has no good outcome yet, until too many children are lost."""
        tolerated = max(FEWEST_LOST_CHILDREN, int(self._config.failure_budget * len(completions)))
        todo = [
            row for row, outcome in enumerate(outcomes) if outcome is None or outcome.grade is not Grade.OK
        ]
        lost = 0
        while todo and lost <= tolerated:
            done = self._process.score([completions[row] for row in todo], self._config.timeout_seconds)
            for row, outcome in zip(todo, done, strict=False):
                outcomes[row] = outcome
            todo = todo[len(done) :]
            if self._process.pid is None:
                lost += 1
                log.warning("scorers were stopped: %s", done[-1].reason)


class InlineGrader:
    """Scores in this process, without timeouts: the fake of the port, for simulations and for scorers that
    are known."""

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self._rubric, self._max_new_tokens = Rubric(config, max_new_tokens), max_new_tokens
        self._scorers = {name: load_scorer(key) for name, key in self._rubric.scorers.items()}

    def grade(self, block: RolloutBlock) -> ScoreBlock:
        """The scores of all rollouts; see `RolloutGrader`."""
        return self._rubric.scores(block, _each_once(block, self._max_new_tokens, self._outcomes))

    def close(self) -> None:
        """Nothing to give up."""

    def _outcomes(self, completions: Sequence[Completion]) -> list[Outcome]:
        return [apply_scorers(self._scorers, completion) for completion in completions]


def _each_once(
    block: RolloutBlock, max_new_tokens: int, outcomes_of: Callable[[Sequence[Completion]], list[Outcome]]
) -> list[Outcome]:
    """Outcomes of a block's rollouts, with equal ones graded once."""
    rows: list[int] = []
    distinct: dict[tuple[str, str, int, int], int] = {}
    completions: list[Completion] = []
    for completion in completions_of(block, max_new_tokens):
        key = (completion.prompt.prompt_id, completion.text, completion.length, completion.finish)
        if key not in distinct:
            distinct[key] = len(completions)
            completions.append(completion)
        rows.append(distinct[key])
    outcomes = outcomes_of(completions)
    return [outcomes[row] for row in rows]
