"""Generalised advantage estimation (GAE) with the learner's value head: an advantage for each token.

Before the first update of a step every rank computes the values of its tokens, from which follow

    delta[t]     = r[t] + gamma V[t + 1] - V[t]                 r is the reward at the last token, 0 before it
    advantage[t] = delta[t] + gamma lam advantage[t + 1]        and 0 after the last token
    return[t]    = advantage[t] + V[t]                          what the value head learns

over the trained tokens of a rollout. V[t] is the value of what precedes token t, and 0 after the last token.
Tokens that the model did not sample are not steps. Advantages are then normalised to mean 0 and standard
deviation 1 over all trained tokens of the batch, on all ranks together. Advantages and returns stay the same
for all updates of the step.

The loss of the value head is PPO's clipped squared error, at each token

    1/2 max((V - return)^2, (clip(V, V_old - value_clip, V_old + value_clip) - return)^2)

weighted like the policy loss and multiplied by `value_coefficient`. Its gradient also trains the layers that
the head shares with the policy.

- GAE: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16.
- PPO: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 9.
- The clip of the values is that of OpenAI's implementation: Engstrom et al. 2020,
  https://arxiv.org/abs/2005.12729, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.training.learner.losses.token_rows import TokenRows
from orchestrator.training.learner.micro_batch import MicroBatch, ValueTargets
from orchestrator.training.learner.rows import GaeSpec
from orchestrator.training.learner.value_head import ValueReader

EPSILON = 1e-8
"""Added to the standard deviation of the advantages."""


class Critic:
    """The value head of one rank: token-level advantages, its loss, and its metrics. Create it after the
    model's `TokenScorer` and before DeepSpeed takes the model.
    """

    def __init__(self, model: PreTrainedModel, spec: GaeSpec, device: torch.device) -> None:
        self._reader, self._spec, self._device = ValueReader(model), spec, device
        self._explained = 0.0
        self._sums = self._no_sums()

    @torch.no_grad()
    def credit(
        self, work: Sequence[Sequence[MicroBatch]], score: Callable[[MicroBatch], object]
    ) -> list[list[MicroBatch]]:
        """Replace the advantages of micro-batches, which are the rewards of their rollouts, by those of GAE,
        and set what the value head is to learn. `score` runs the model. Collective.
        """
        credited = [[self._with_targets(batch, score) for batch in batches] for batches in work]
        moments = torch.zeros(5, dtype=torch.float64, device=self._device)
        for batch in (batch for batches in credited for batch in batches):
            moments += _moments(batch)
        dist.all_reduce(moments)
        count, mean, square, mean_return, square_return = moments.tolist()
        count = max(1.0, count)
        mean, mean_return = mean / count, mean_return / count
        variance = max(0.0, square / count - mean**2)
        spread = square_return / count - mean_return**2
        self._explained = 1 - variance / spread if spread > 0 else 0.0
        self._sums = self._no_sums()
        return [
            [
                replace(batch, advantages=(batch.advantages - mean) / (variance**0.5 + EPSILON))
                for batch in batches
            ]
            for batches in credited
        ]

    def loss(self, batch: MicroBatch) -> Tensor:
        """The weighted value loss of the forward pass that was just made, a scalar with gradient."""
        targets, values = batch.value_targets, self._reader.take()
        assert targets is not None, "the micro-batch has been given its advantages"
        losses, clipped = value_losses(values, targets, self._spec.value_clip)
        total = torch.dot(losses, batch.weights)
        self._sums += torch.stack(
            [total.detach().double(), clipped.sum().double(), values.new_tensor(values.numel()).double()]
        )
        return self._spec.value_coefficient * total

    def metrics(self, updates: int) -> dict[str, float]:
        """The metrics of a step with this many updates. Collective."""
        dist.all_reduce(self._sums)
        loss, clipped, tokens = self._sums.tolist()
        return {
            "value/loss": loss / updates,
            "value/clip_fraction": clipped / max(1.0, tokens),
            "value/explained_variance": self._explained,
        }

    def _with_targets(self, batch: MicroBatch, score: Callable[[MicroBatch], object]) -> MicroBatch:
        score(batch)
        values = self._reader.take()
        advantages = gae(batch.advantages, values, batch.token_rows, self._spec.gamma, self._spec.lam)
        return replace(
            batch, advantages=advantages, value_targets=ValueTargets(old=values, returns=advantages + values)
        )

    def _no_sums(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self._device)


def gae(rewards: Tensor, values: Tensor, rows: TokenRows, gamma: float, lam: float) -> Tensor:
    """The advantage of each token, before normalisation, from the reward of its rollout at each token [T] and
    the values [T]. Adds up in float64 and returns the dtype of `values`.
    """
    lengths = torch.bincount(rows.index, minlength=rows.count)
    longest = int(lengths.max()) if rows.index.numel() else 0
    starts = lengths.cumsum(0) - lengths
    places = torch.arange(rows.index.numel(), device=rows.index.device) - starts.index_select(0, rows.index)
    table = values.new_zeros((longest + 1, rows.count), dtype=torch.float64)
    table[places, rows.index] = values.double()
    deltas = gamma * table.roll(-1, dims=0) - table
    last = torch.eq(places, lengths.index_select(0, rows.index) - 1)
    deltas[places[last], rows.index[last]] += rewards[last].double()
    running = values.new_zeros(rows.count, dtype=torch.float64)
    for step in range(longest - 1, -1, -1):
        running = torch.where(step < lengths, deltas[step] + gamma * lam * running, 0.0)
        table[step] = running
    return table[places, rows.index].to(values.dtype)


def value_losses(values: Tensor, targets: ValueTargets, clip: float | None) -> tuple[Tensor, Tensor]:
    """The loss [T] of each value [T], and whether the clip took its gradient away [T] bool."""
    losses = (values - targets.returns).square()
    if clip is None:
        return losses / 2, torch.zeros_like(losses, dtype=torch.bool)
    near = targets.old + (values - targets.old).clamp(-clip, clip)
    bounded = (near - targets.returns).square()
    beyond = (bounded > losses).detach()
    return torch.maximum(losses, bounded) / 2, beyond


def _moments(batch: MicroBatch) -> Tensor:
    """Number of tokens, and sums of advantages, their squares, returns and their squares: [5] float64."""
    assert batch.value_targets is not None
    advantages, returns = batch.advantages.double(), batch.value_targets.returns.double()
    count = advantages.new_tensor(advantages.numel())
    sums = (advantages.sum(), advantages.square().sum(), returns.sum(), returns.square().sum())
    return torch.stack([count, *sums])
