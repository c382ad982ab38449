"""Graders: a `RolloutBlock` in, a `ScoreBlock` out, whatever the scorers do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.rewards.completion import Completion, completions_of
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.process import ScorerProcess
from orchestrator.training.rewards.rubric import Outcome, Rubric, apply_scorers
from orchestrator.training.rewards.scorers import load_scorer

FEWEST_LOST_CHILDREN = 4
"""So many lost children are tolerated in any block, however small it is."""
UNTRIED = Outcome(ScoreStatus.TIMEOUT, reason="not tried: too many rollouts of its block hung or crashed")

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
        self._config, self._max_new_tokens, self._retries = config, max_new_tokens, config.retries
        self._rubric = Rubric(config, max_new_tokens)
        self._process = ScorerProcess(self._rubric.scorers, config.memory_bytes)

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._process.pid

    def grade(self, block: RolloutBlock) -> ScoreBlock:
        """The scores of all rollouts; see `RolloutGrader`."""
        return self._rubric.scores(
            block, _grade_each(block, self._max_new_tokens, self._retries, self._attempt)
        )

    def close(self) -> None:
        """End the child."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, completions: Sequence[Completion]) -> list[Outcome]:
        """ScoreStatus each once; the last ones are left out if too many children were lost before."""
        tolerated = max(FEWEST_LOST_CHILDREN, int(self._config.failure_budget * len(completions)))
        outcomes: list[Outcome] = []
        lost = 0
        while len(outcomes) < len(completions) and lost <= tolerated:
            outcomes += self._process.score(completions[len(outcomes) :], self._config.timeout_seconds)
            if self._process.pid is None:
                lost += 1
                log.warning("scorers were stopped: %s", outcomes[-1].reason)
        return outcomes


class InlineGrader:
    """Scores in this process, without timeouts: the fake of the port, for simulations and for scorers that
    are known."""

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self._max_new_tokens, self._retries = max_new_tokens, config.retries
        self._rubric = Rubric(config, max_new_tokens)
        self._scorers = {name: load_scorer(key) for name, key in self._rubric.scorers.items()}

    def grade(self, block: RolloutBlock) -> ScoreBlock:
        """The scores of all rollouts; see `RolloutGrader`."""
        return self._rubric.scores(
            block, _grade_each(block, self._max_new_tokens, self._retries, self._attempt)
        )

    def close(self) -> None:
        """Nothing to give up."""

    def _attempt(self, completions: Sequence[Completion]) -> list[Outcome]:
        return [apply_scorers(self._scorers, completion) for completion in completions]


Attempt = Callable[[Sequence[Completion]], list[Outcome]]
"""Grades completions once, in order; it may leave out the last ones."""


def _grade_each(block: RolloutBlock, max_new_tokens: int, retries: int, attempt: Attempt) -> list[Outcome]:
    """Outcomes of a block's rollouts, row for row; equal rollouts are graded once."""
    completions = list(completions_of(block, max_new_tokens))
    keys = [(each.prompt.prompt_id, each.text, each.length, each.finish) for each in completions]
    distinct = dict(zip(keys, completions, strict=True))
    outcomes = dict(zip(distinct, _with_retries(list(distinct.values()), retries, attempt), strict=True))
    return [outcomes[key] for key in keys]


def _with_retries(completions: Sequence[Completion], retries: int, attempt: Attempt) -> list[Outcome]:
    outcomes = [UNTRIED] * len(completions)
    for _ in range(1 + retries):
        rows = [row for row, outcome in enumerate(outcomes) if outcome.grade is not ScoreStatus.OK]
        if not rows:
            break
        for row, outcome in zip(rows, attempt([completions[row] for row in rows]), strict=False):
            outcomes[row] = outcome
    return outcomes
