"""Turns the scored blocks of a batch into training rows: one per rollout, with its advantage and
the weight of its tokens.

    parts -> rewards [P, G] -> advantages [P, G] -> rows -> minibatches -> weights

Everything here is a pure function of the batch, so all ranks compute the same rows without communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.learner.losses.aggregation import Aggregation, rollout_token_weights
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.records import BatchPart, Finish, TokenWork


@dataclass(frozen=True, slots=True)
class GaeSpec:
    """The parameters of generalised advantage estimation and of the value loss."""

    gamma: float
    lam: float
    value_coefficient: float
    value_clip: float | None
    """None: values are not clipped."""


Advantages = Callable[[Tensor], Tensor]
"""Turns rewards [P, G] float64 into advantages [P, G] float64; see `orchestrator.training.advantages`."""


@dataclass(frozen=True, slots=True)
class AlgorithmSpec:
    """The parameters of the algorithm that the learner needs.

    `temperature` is the sampling temperature, so that the learner's log-probs belong to the sampled
    distribution; 1 for a supervised loss, whose tokens were not sampled. `max_new_tokens` is the divisor of
    the aggregation `constant`. With `overlong_filtering`, rollouts that reached the limit of new tokens are
    not trained on (DAPO, https://arxiv.org/abs/2503.14476, section 3.4). `reward_kl_coefficient` times a
    rollout's KL divergence is subtracted from its reward. After every `reference_period` steps the reference
    model is replaced by the learner's model; None: never. With `gae` the learner has a value head, and
    `advantages` passes the rewards on, from which each token gets its own advantage.
    """

    advantages: Advantages
    objective: Objective
    aggregation: Aggregation
    drop_uninformative: bool
    temperature: float
    max_new_tokens: int
    overlong_filtering: bool = False
    reward_kl_coefficient: float = 0.0
    reference_period: int | None = None
    gae: GaeSpec | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            hint = "a greedy rollout has no log-probs to train on"
            raise ValueError(f"temperature: got {self.temperature}, allowed: above 0 ({hint})")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One rollout with L tokens of prompt and response together, of which R belong to the response."""

    tokens: NDArray[np.int32]  # [L]
    prompt_length: int  # L - R
    trainable: NDArray[np.bool_]  # [R]; all False for a rollout that is not trained on
    logprobs: NDArray[np.float32]  # [R], the rollout engine's
    oldest_version: int
    advantage: float
    weight: float
    """Weight of each of its trainable tokens in the loss of its minibatch."""
    routes: NDArray[np.int16] | None = None  # [L, R, k]
    """Experts to which the sampler's routers sent each token; -1 where unknown."""

    def __len__(self) -> int:
        """Number of tokens of prompt and response."""
        return len(self.tokens)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens in the loss."""
        return int(self.trainable.sum())


def rollout_rows(parts: Sequence[BatchPart]) -> list[TrainingRow]:
    """The rows of all rollouts in order, without advantages and weights, as a pass needs them that comes
    before the rewards are known.
    """
    return [row for part in parts for group in part.groups for row in _rollouts(part, group)]


def minibatch_rows(
    parts: Sequence[BatchPart],
    rule: AlgorithmSpec,
    minibatches: int,
    penalties: NDArray[np.float64] | None = None,
) -> list[list[TrainingRow]]:
    """Build the rows of each minibatch. Groups are never split. Advantages are computed over the whole batch,
    weights over the minibatch. `penalties` [rollouts], in the order of `rollout_rows`, are
    subtracted from the rewards.

    A row's weight takes into account all rollouts of its minibatch, including those without a gradient.
    Raises ValueError if the batch is empty, its blocks have different group sizes, it has fewer groups than
    minibatches, or a prompt is empty.
    """
    group_sizes = {part.rollouts.group_size for part in parts}
    groups = [(part, group) for part in parts for group in part.groups]
    if len(group_sizes) != 1 or len(groups) < minibatches:
        raise ValueError(
            f"batch: got {len(groups)} groups of sizes {sorted(group_sizes)}, "
            f"allowed: {minibatches} or more of one size"
        )
    size = group_sizes.pop()
    rewards = np.stack(
        [part.scores.rewards[group * size : (group + 1) * size] for part, group in groups]
    )  # [P, G]
    rewards = rewards.astype(np.float64)
    if penalties is not None:
        rewards = rewards - penalties.reshape(rewards.shape)
    advantages = rule.advantages(torch.from_numpy(rewards)).numpy()

    bounds = np.linspace(0, len(groups), minibatches + 1).round().astype(int)
    return [
        _weighted_rows(groups[first:last], advantages[first:last], rule)
        for first, last in pairwise(bounds.tolist())
    ]


def computed_rows(rows: Sequence[TrainingRow], rule: AlgorithmSpec) -> list[TrainingRow]:
    """The rows that need a forward and backward pass: those with a token to train on and, with
    `drop_uninformative`, a non-zero advantage. With a KL penalty or an entropy bonus every row has a
    gradient, so none is dropped for its advantage.
    """
    objective = rule.objective
    drop = rule.drop_uninformative and objective.kl_coefficient == 0 and objective.entropy_coefficient == 0
    return [row for row in rows if row.trained_tokens > 0 and not (drop and row.advantage == 0.0)]


def trained_on(rows: Sequence[TrainingRow]) -> TokenWork:
    """The amount of work to train on the rows: tokens read and predicted."""
    lengths = [len(row) for row in rows]
    return TokenWork(
        tokens=sum(lengths),
        predicted=sum(row.trained_tokens for row in rows),
        pairs=sum(length * (length + 1) // 2 for length in lengths),
    )


def _weighted_rows(
    groups: Sequence[tuple[BatchPart, int]], advantages: NDArray[np.float64], rule: AlgorithmSpec
) -> list[TrainingRow]:
    rows = [
        row for part, group in groups for row in _rollouts(part, group, overlong=not rule.overlong_filtering)
    ]
    lengths = torch.tensor([row.trained_tokens for row in rows], dtype=torch.int64)
    weights = rollout_token_weights(lengths, rule.aggregation, rule.max_new_tokens)
    weighed = zip(rows, advantages.ravel().tolist(), weights.tolist(), strict=True)
    return [
        replace(row, advantage=float(advantage), weight=float(weight)) for row, advantage, weight in weighed
    ]


def _rollouts(part: BatchPart, group: int, *, overlong: bool = True) -> Iterator[TrainingRow]:
    """The group's rows, without advantages and weights. With `overlong` False, rollouts that were cut at the
    limit of new tokens have no token to train on.
    """
    block = part.rollouts
    prompt_span = slice(block.prompt_offsets[group], block.prompt_offsets[group + 1])
    prompt = block.prompt_tokens[prompt_span]
    if len(prompt) == 0:
        raise ValueError(
            f"prompt {block.prompts[group].prompt_id}: got 0 tokens, allowed: 1 or more "
            "(the first response token is predicted from it)"
        )
    for index in range(group * block.group_size, (group + 1) * block.group_size):
        span = slice(block.offsets[index], block.offsets[index + 1])
        filtered = block.finish[index] == Finish.LENGTH and not overlong
        trainable = np.zeros_like(block.trainable[span]) if filtered else block.trainable[span]
        versions = block.versions[span]
        yield TrainingRow(
            tokens=np.concatenate([prompt, block.tokens[span]]),
            prompt_length=len(prompt),
            trainable=trainable,
            logprobs=block.logprobs[span],
            oldest_version=int(versions.min()) if len(versions) else -1,
            advantage=0.0,
            weight=0.0,
            routes=None
            if block.routes is None or block.prompt_routes is None
            else np.concatenate([block.prompt_routes[prompt_span], block.routes[span]]),
        )
