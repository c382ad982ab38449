"""Computes rewards from outcomes: the weighted sum of the components, or the failure reward."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.errors import ConfigError
from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.overlong import overlong_punishment
from orchestrator.training.rewards.scoring import Outcome

OVERLONG = "overlong"
"""The component that `reward.overlong_buffer` adds, with weight 1."""


class Rubric:
    """Computes a `ScoreBlock` from outcomes, as configured by the `reward` group. It never calls a scorer."""

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        self.scorers = component_names(config.components)
        self._weights = np.array(list(config.components.values()), dtype=np.float64)
        self._failure_reward = config.failure_reward
        self._overlong_buffer, self._max_new_tokens = config.overlong_buffer, max_new_tokens
        self._reflects = re.compile(config.reflection_pattern)

    def scores(self, block: RolloutBlock, outcomes: Sequence[Outcome], answers: Sequence[str]) -> ScoreBlock:
        """Compute the rewards of a block from the outcomes and answers of its rollouts, in row order."""
        ok = np.array([outcome.status is ScoreStatus.OK for outcome in outcomes], dtype=np.bool_)
        none = (math.nan,) * len(self.scorers)
        table = np.array(
            [outcome.components if outcome.status is ScoreStatus.OK else none for outcome in outcomes],
            dtype=np.float64,
        ).reshape(len(outcomes), len(self.scorers))
        components = dict(zip(self.scorers, table.T, strict=True))
        rewards = table @ self._weights
        if self._overlong_buffer:
            limits = (
                self._max_new_tokens if block.limits is None else np.repeat(block.limits, block.group_size)
            )
            overlong = overlong_punishment(block.lengths, limits, self._overlong_buffer)
            components[OVERLONG] = np.where(ok, overlong, math.nan)
            rewards = rewards + overlong
        return ScoreBlock(
            rewards=np.where(ok, rewards, self._failure_reward),
            components=components,
            grades=np.array([outcome.status for outcome in outcomes], dtype=np.uint8),
            reasons=tuple(outcome.reason for outcome in outcomes),
            reflected=np.array([bool(self._reflects.search(text)) for text in block.texts], dtype=np.bool_),
            answers=tuple(answers),
            tracebacks=() if ok.all() else tuple(outcome.traceback for outcome in outcomes),
        )


def spelled_answer(completion: Completion) -> str:
    """Normalise the case and white space of the answer; empty if there is none."""
    return " ".join((completion.answer or "").casefold().split())


def component_names(components: Mapping[str, float]) -> dict[str, str]:
    """Map component names to scorer keys. A registered name is its own key;
    `module:function` is called `function`.

    Raises ConfigError if two components would have the same name.
    """
    names: dict[str, str] = {}
    for key in components:
        name = key.rpartition(":")[2]
        if name in names or name == OVERLONG:
            raise ConfigError("reward.components", key, "components of different names", f"{name} is taken")
        names[name] = key
    return names
