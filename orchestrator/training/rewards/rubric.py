"""From a scorer's numbers to a reward: the weighted sum of the components, and what a failure is worth."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from orchestrator.errors import ConfigError
from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.rewards.completion import Completion, Scorer
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.overlong import overlong_punishment
from orchestrator.training.rewards.scorers.accuracy import last_answer

OVERLONG = "overlong"
"""The component that `reward.overlong_buffer` adds, with weight 1."""

ACCURACY = "accuracy"
"""The scorer that finds answers between tags. Another one of that name may find them elsewhere."""

_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the grading of one rollout ended; `components` are empty unless it is OK, `reason` says why it is
    not."""

    grade: ScoreStatus
    components: tuple[float, ...] = ()
    reason: str = ""


def apply_scorers(scorers: Mapping[str, Scorer], completion: Completion) -> Outcome:
    """Every scorer's number for one rollout. The first that fails decides: the others' numbers would not be a
    reward."""
    components: list[float] = []
    for name, scorer in scorers.items():
        try:
            value = scorer(completion)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a scorer may raise anything; it is data here
            return Outcome(
                ScoreStatus.CRASHED, reason=f"{name}: {type(error).__name__}: {error}"[:_REASON_LENGTH]
            )
        number = _finite(value)
        if number is None:
            return Outcome(
                ScoreStatus.INVALID, reason=f"{name}: not a finite number: {value!r}"[:_REASON_LENGTH]
            )
        components.append(number)
    return Outcome(ScoreStatus.OK, tuple(components))


def _finite(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class Rubric:
    """The `reward` group as a function from outcomes to a `ScoreBlock`. It never calls a scorer."""

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self.scorers = _names(config.components)
        self._weights = np.array(list(config.components.values()), dtype=np.float64)
        self._failure_reward = config.failure_reward
        self._overlong_buffer, self._max_new_tokens = config.overlong_buffer, max_new_tokens
        self._reflects = re.compile(config.reflection_pattern)
        self._finds_answers = self.scorers.get(ACCURACY) == ACCURACY

    def scores(self, block: RolloutBlock, outcomes: Sequence[Outcome]) -> ScoreBlock:
        """Rewards of a block whose rollouts were graded, row for row.

        The components of a rollout that could not be graded are NaN: it has no accuracy, neither a good nor a
        bad one.
        """
        ok = np.array([outcome.grade is ScoreStatus.OK for outcome in outcomes], dtype=np.bool_)
        none = (math.nan,) * len(self.scorers)
        table = np.array(
            [outcome.components if outcome.grade is ScoreStatus.OK else none for outcome in outcomes],
            dtype=np.float64,
        ).reshape(len(outcomes), len(self.scorers))
        components = dict(zip(self.scorers, table.T, strict=True))
        rewards = table @ self._weights
        if self._overlong_buffer:
            overlong = overlong_punishment(block.lengths, self._max_new_tokens, self._overlong_buffer)
            components[OVERLONG] = np.where(ok, overlong, math.nan)
            rewards = rewards + overlong
        return ScoreBlock(
            rewards=np.where(ok, rewards, self._failure_reward),
            components=components,
            grades=np.array([outcome.grade for outcome in outcomes], dtype=np.uint8),
            reasons=tuple(outcome.reason for outcome in outcomes),
            reflected=np.array([bool(self._reflects.search(text)) for text in block.texts], dtype=np.bool_),
            answers=tuple(map(_answer, block.texts)) if self._finds_answers else None,
        )


def _answer(text: str) -> str:
    """What the scorer `accuracy` judges, as one votes on it: "The Sun " and "the  sun" are one answer."""
    return " ".join((last_answer(text) or "").casefold().split())


def _names(components: Mapping[str, float]) -> dict[str, str]:
    """Component name -> scorer key: a registered name is its own, `module:function` is called `function`."""
    names: dict[str, str] = {}
    for key in components:
        name = key.rpartition(":")[2]
        if name in names or name == OVERLONG:
            raise ConfigError("reward.components", key, "components of different names", f"{name} is taken")
        names[name] = key
    return names
