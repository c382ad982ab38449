"""DeepSeek-V3's complementary sequence-wise auxiliary loss, https://arxiv.org/abs/2412.19437, equations 17 to
20: it keeps a single sequence from sending its tokens to few experts.

    L = alpha * sum_i f_i P_i       for a sequence and a layer of experts
    f_i = E / (k T) * (tokens of the sequence whose k largest scores include expert i)
    P_i = 1 / T * sum_t s_it / sum_j s_jt

with T tokens of the sequence, E experts of which k are chosen, and s the router's scores. The minibatch's
loss is the mean over its sequences, summed over layers. A sequence is a row: prompt and response.

Equation 18 takes the k largest *scores*. The selection bias (equation 16), limits on groups of experts and
replayed routes decide where a token goes, but they do not enter f_i: the loss measures how the router itself
spreads its scores, which is what its gradient can change. (With the experts that were chosen, a bias that has
balanced the loads would leave the loss near 1 and almost without gradient.)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.training.learner.micro_batch import MicroBatch
from orchestrator.training.models.routers import find_routers, logits_of_gate, scores_by_sigmoid


class SequenceBalanceLoss:
    """Adds the gradient of the loss at the routers' outputs, so that it is also there when the backward pass
    recomputes the forward pass (activation checkpointing).
    """

    def __init__(self, model: PreTrainedModel, coefficient: float, device: torch.device) -> None:
        """`coefficient` is alpha; with 0 the model is not changed."""
        self._coefficient = coefficient
        self._batch: MicroBatch | None = None
        self._share, self._ranks, self._minibatches = 0.0, 1, 0
        self._counting = False
        self._value = torch.zeros((), dtype=torch.float64, device=device)
        if coefficient > 0:
            for router in find_routers(model).values():
                self._add_to(router)

    def reset(self) -> None:
        """Start a step: forget the sums of the step before, also if it was refused."""
        self._value.zero_()
        self._minibatches = 0

    def begin(self, sequences: int, ranks: int) -> None:
        """Start a minibatch of `sequences` rows, over all ranks together. DeepSpeed divides its
        gradient by `ranks`.
        """
        self._share, self._ranks = 1 / max(1, sequences), ranks
        self._minibatches += 1

    def use(self, batch: MicroBatch | None) -> None:
        """Apply the loss to this micro-batch from now on; None: add no loss."""
        self._batch = batch

    @contextmanager
    def counting(self) -> Generator[None]:
        """The forward pass inside counts for `take`; one that the backward pass repeats does not."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def take(self) -> dict[str, float]:
        """`moe/sequence_balance_loss` over all ranks, mean over the minibatches since `reset`; empty if the
        coefficient is 0. Collective.
        """
        if self._coefficient == 0:
            return {}
        dist.all_reduce(self._value)
        return {"moe/sequence_balance_loss": float(self._value) / max(1, self._minibatches)}

    def _add_to(self, router: nn.Module) -> None:
        gate_logits = logits_of_gate(router)

        def add(
            _module: nn.Module, _inputs: object, outputs: tuple[Tensor, ...]
        ) -> tuple[Tensor, ...] | None:
            logits = outputs[0] if gate_logits is None else gate_logits.pop()
            if self._batch is None or not torch.is_grad_enabled():
                return None
            place = 1 if gate_logits is None else 0
            weights, k = outputs[place], outputs[place + 1].shape[-1]
            scores = logits.float().sigmoid() if scores_by_sigmoid(router) else logits.float().softmax(dim=-1)
            loss = self._coefficient * sequence_balance(scores, k, self._batch.rows, self._batch.real)
            if self._counting:
                self._value += loss.detach() * self._share
            added: Any = _AddLoss.apply(weights, loss * (self._share * self._ranks))
            return (*outputs[:place], added, *outputs[place + 1 :])

        router.register_forward_hook(add)


def sequence_balance(scores: Tensor, k: int, rows: Tensor, real: Tensor) -> Tensor:
    """The sum over sequences of sum_i f_i P_i.

    `scores` [T, E] float32, not negative; each token has `k` experts; `rows` [T] is the sequence of each
    position; `real` [T] is False on padding. The gradient flows through P only.
    """
    positions, experts = scores.shape
    count = int(rows.max()) + 1 if positions else 0
    counted = real.to(scores)
    tokens = scores.new_zeros(count).index_add_(0, rows, counted).clamp(min=1)
    largest = scores.detach().topk(k, dim=-1).indices
    picked = scores.new_zeros(positions, experts).scatter_(1, largest, 1.0)
    shares = scores / scores.sum(dim=-1, keepdim=True)
    frequency = scores.new_zeros(count, experts).index_add_(0, rows, picked * counted[:, None])
    probability = scores.new_zeros(count, experts).index_add(0, rows, shares * counted[:, None])
    frequency = frequency * (experts / k) / tokens[:, None]
    return (frequency * probability / tokens[:, None]).sum()


class _AddLoss(torch.autograd.Function):
    """Returns `weights` unchanged and gives `loss` a gradient of 1 in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        ctx.save_for_backward(loss)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        (loss,) = ctx.saved_tensors
        return grad_outputs[0], torch.ones_like(loss)
