"""Summarises blocks of scored rollouts as small sums. They are computed next to the data,
and the controller adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from orchestrator.training.records import Finish, RolloutBlock, ScoreBlock, ScoreStatus, TokenWork
from orchestrator.training.telemetry.proportion import Proportion, proportion

ACCURACY = "accuracy"
"""The component whose mean is `accuracy/train`."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum and the number of values in it."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; NaN without values."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """Sums over rollouts, which can be added; `BlockSummary()` is zero.

    `components` only counts scored rollouts: a rollout that could not be scored has a reward
    (`reward.failure_reward`), but no accuracy. In the example of the module `records`, the rewards 1 0 1 0
    and the lengths 2 2 2 3 give `reward/mean` 0.5, `reward/std` 0.5 and `rollout/length_mean` 2.25.
    """

    rollouts: int = 0
    tokens: int = 0
    failed: int = 0
    reward_total: float = 0.0
    reward_square_total: float = 0.0
    components: Mapping[str, Mean] = field(default_factory=dict[str, Mean])
    right: Proportion = field(default_factory=Proportion)
    """The scored rollouts with a correct answer; empty for a rubric without accuracy."""
    truncated: Proportion = field(default_factory=Proportion)
    reflected: Proportion = field(default_factory=Proportion)
    answered: Proportion = field(default_factory=Proportion)
    """The rollouts that contain an answer; empty if the scores have no answers."""
    work: TokenWork = field(default_factory=TokenWork)
    sampled: Mapping[str, Mean] = field(default_factory=dict[str, Mean])
    """`pass_at_<k>` and `maj_at_<k>` over the prompts, if held-out answers were sampled."""
    failure: str = ""
    """A description of one of the failed rollouts; empty without failures."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            rollouts=self.rollouts + other.rollouts,
            tokens=self.tokens + other.tokens,
            failed=self.failed + other.failed,
            reward_total=self.reward_total + other.reward_total,
            reward_square_total=self.reward_square_total + other.reward_square_total,
            components=merged(self.components, other.components),
            right=self.right + other.right,
            truncated=self.truncated + other.truncated,
            reflected=self.reflected + other.reflected,
            answered=self.answered + other.answered,
            work=self.work + other.work,
            sampled=merged(self.sampled, other.sampled),
            failure=self.failure or other.failure,
        )

    @property
    def reward_mean(self) -> float:
        """Mean reward over all rollouts; NaN without rollouts."""
        return self.reward_total / self.rollouts if self.rollouts else math.nan

    @property
    def reward_std(self) -> float:
        """Standard deviation of the reward over all rollouts (divisor N, not N - 1); NaN without rollouts."""
        if not self.rollouts:
            return math.nan
        return math.sqrt(max(self.reward_square_total / self.rollouts - self.reward_mean**2, 0.0))

    def metrics(self) -> dict[str, float]:
        """The metrics `reward/*`, `accuracy/train`, `rollout/*` and `eval/*`, and the sample sizes `*_n` from
        which the confidence intervals of shares follow. Means without any value are omitted, never 0.0.
        """
        # An accuracy may be fractional; only correct answers (1.0) have a proportion.
        accuracy = self.components.get(ACCURACY, Mean())
        values = {
            "reward/mean": self.reward_mean,
            "reward/std": self.reward_std,
            "reward/failed_fraction": self._per_rollout(self.failed),
            "accuracy/train": accuracy.value,
            "accuracy/train_n": self.right.effective_n,
            "rollout/count": float(self.rollouts),
            "rollout/tokens": float(self.tokens),
            "rollout/length_mean": self._per_rollout(self.tokens),
            "rollout/truncated_fraction": self.truncated.value,
            "rollout/truncated_n": self.truncated.effective_n,
            "rollout/reflection_fraction": self.reflected.value,
            "rollout/reflection_n": self.reflected.effective_n,
            "rollout/answered_fraction": self.answered.value,
        }
        values |= {f"reward/{name}": mean.value for name, mean in self.components.items()}
        values |= {f"eval/{name}": mean.value for name, mean in self.sampled.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _per_rollout(self, count: int) -> float:
        return count / self.rollouts if self.rollouts else math.nan


def summarise(
    rollouts: RolloutBlock, scores: ScoreBlock, groups: Sequence[int] | None = None
) -> BlockSummary:
    """Sum over the block's rollouts, or only over those of `groups` (row numbers)."""
    size = rollouts.group_size
    rows = rows_of(groups, size) if groups is not None else np.arange(len(rollouts), dtype=np.int64)
    rewards, lengths = scores.rewards[rows], rollouts.lengths[rows]
    graded = scores.grades[rows] == ScoreStatus.OK
    accuracy = scores.components.get(ACCURACY)
    answers = None if scores.answers is None else np.array([bool(scores.answers[row]) for row in rows], bool)
    return BlockSummary(
        rollouts=len(rows),
        tokens=int(lengths.sum()),
        failed=int((~graded).sum()),
        reward_total=float(rewards.sum()),
        reward_square_total=float(np.square(rewards).sum()),
        components={name: _mean(values[rows][graded]) for name, values in scores.components.items()},
        right=Proportion() if accuracy is None else proportion(accuracy[rows] >= 1, size, graded),
        truncated=proportion(rollouts.finish[rows] == Finish.LENGTH, size),
        reflected=proportion(scores.reflected[rows], size),
        answered=Proportion() if answers is None else proportion(answers, size),
        work=_sampling(
            np.diff(rollouts.prompt_offsets)[rows[::size] // size],
            lengths.reshape(-1, size),
        ),
    )


def rows_of(groups: Iterable[int], group_size: int) -> NDArray[np.int64]:
    """Return the row numbers of the rollouts of those groups, in order.

    >>> rows_of([0, 2], group_size=2).tolist()
    [0, 1, 4, 5]
    """
    starts = np.asarray(list(groups), dtype=np.int64) * group_size
    return (starts[:, None] + np.arange(group_size, dtype=np.int64)).reshape(-1)


def _sampling(prompts: NDArray[np.int64], responses: NDArray[np.int64]) -> TokenWork:
    """Compute the work of sampling from prompts of these lengths, [P], and their responses, [P,
    G]: a prompt is read once per group, which predicts the first token of each response; the last
    token of a response is never read.
    """
    read = np.maximum(responses - 1, 0)
    pairs = (prompts * (prompts + 1) // 2).sum() + (read * prompts[:, None] + read * (read + 1) // 2).sum()
    return TokenWork(int(prompts.sum() + read.sum()), int(responses.sum()), int(pairs))


def merged(one: Mapping[str, Mean], other: Mapping[str, Mean]) -> dict[str, Mean]:
    """Add the sums by name, in the order of `one`."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: one.get(name, Mean()) + other.get(name, Mean()) for name in names}


def _mean(values: NDArray[np.float64]) -> Mean:
    finite = values[np.isfinite(values)]
    return Mean(float(finite.sum()), len(finite))
