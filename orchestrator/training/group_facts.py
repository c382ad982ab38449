"""What the controller has to know about a group of rollouts, computed next to the data."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.training.records import RolloutBlock, ScoreBlock, WeightVersion


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A few numbers about one scored group; see `GroupTicket`."""

    oldest_version: WeightVersion
    tokens: int
    reward_mean: float
    informative: bool
    """Whether the rewards differ. If they are all equal, every group-relative advantage is zero."""


def group_facts(block: RolloutBlock, scores: ScoreBlock) -> tuple[GroupFacts, ...]:
    """The facts of every group of a block, in the block's order."""
    return tuple(_facts_of(block, scores, row) for row in range(len(block.group_ids)))


def _facts_of(block: RolloutBlock, scores: ScoreBlock, row: int) -> GroupFacts:
    first, last = row * block.group_size, (row + 1) * block.group_size
    start, end = int(block.offsets[first]), int(block.offsets[last])
    rewards = scores.rewards[first:last]
    return GroupFacts(
        oldest_version=int(block.versions[start:end].min()) if end > start else 0,
        tokens=end - start,
        reward_mean=float(rewards.mean()),
        informative=bool((rewards != rewards[0]).any()),
    )
