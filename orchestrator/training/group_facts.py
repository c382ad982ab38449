"""What the controller needs to know about a group of rollouts, computed next to the data.

DAPO keeps a group only if 0 < (correct rollouts) < G (https://arxiv.org/abs/2503.14476, equations 8 and 11).
The alternative criterion is the whole reward, which also differs in a group of wrong rollouts if one of them
has the correct format, or in a group of correct rollouts if one of them is too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.training.records import RolloutBlock, ScoreBlock, WeightVersion

ACCURACY = "accuracy"
"""The reward component that is 1.0 if a rollout is correct."""

Criterion = Literal["accuracy", "reward"]


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A few numbers about one scored group; see `GroupTicket`."""

    oldest_version: WeightVersion
    tokens: int
    reward_mean: float
    informative: bool
    """Whether the rollouts differ by the criterion, so that the group has a training signal."""
    solved: bool
    """Whether all rollouts are correct; False if accuracy is not a component of the reward."""


def group_facts(
    block: RolloutBlock, scores: ScoreBlock, criterion: Criterion = "reward"
) -> tuple[GroupFacts, ...]:
    """Compute the facts of every group of a block, in order. `criterion` is what must differ within an
    informative group: whether rollouts are correct, or their rewards.
    """
    return tuple(_facts_of(block, scores, criterion, row) for row in range(len(block.group_ids)))


def _facts_of(block: RolloutBlock, scores: ScoreBlock, criterion: Criterion, row: int) -> GroupFacts:
    first, last = row * block.group_size, (row + 1) * block.group_size
    start, end = int(block.offsets[first]), int(block.offsets[last])
    rewards = scores.rewards[first:last]
    # A rollout that could not be scored has no accuracy (NaN) and counts as wrong.
    right = scores.components[ACCURACY][first:last] == 1.0 if ACCURACY in scores.components else None
    compared = rewards if criterion == "reward" or right is None else right
    return GroupFacts(
        oldest_version=int(block.versions[start:end].min()) if end > start else 0,
        tokens=end - start,
        reward_mean=float(rewards.mean()),
        informative=bool((compared != compared[0]).any()),
        solved=right is not None and bool(right.all()),
    )
