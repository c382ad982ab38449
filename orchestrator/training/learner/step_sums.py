"""Sums over the tokens of a minibatch, from which the metrics of a step follow.

Micro-batches add up, ranks add up in one all-reduce, and minibatches add up to the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.training.learner.losses.metrics import SUMS, token_means, token_sums
from orchestrator.training.learner.losses.objective import TokenColumns, TokenTerms
from orchestrator.training.learner.micro_batch import MicroBatch

_LOSS, _TOKENS, _POSITIONS = (len(SUMS) + index for index in range(3))


@dataclass(frozen=True, slots=True)
class StepSums:
    """One float64 vector, so that ranks need one all-reduce: `SUMS`, loss, tokens, computed positions."""

    values: Tensor  # [len(SUMS) + 3]

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> StepSums:
        return cls(torch.zeros(len(SUMS) + 3, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, batch: MicroBatch, columns: TokenColumns, terms: TokenTerms, entropies: Tensor) -> StepSums:
        """The sums of one micro-batch; entropies [T] are those of the learner's distributions, in nats."""
        loss = torch.dot(terms.loss.detach().double(), batch.weights.double())
        counts = torch.tensor([batch.tokens, batch.input_ids.numel()], dtype=torch.float64)
        return cls(
            torch.cat([token_sums(columns, terms, entropies), loss[None], counts.to(columns.logprobs.device)])
        )

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(self.values + other.values)

    def all_reduce(self) -> StepSums:
        """The sums of all ranks. Collective."""
        total = self.values.clone()
        dist.all_reduce(total)
        return StepSums(total)

    def cpu(self) -> StepSums:
        return StepSums(self.values.cpu())

    @property
    def loss(self) -> float:
        """Sum of weight x loss over all trained tokens."""
        return float(self.values[_LOSS])

    def metrics(self, updates: int) -> dict[str, float]:
        """The metrics of a step whose `updates` (minibatches of all epochs) are summed here."""
        tokens, positions = float(self.values[_TOKENS]), float(self.values[_POSITIONS])
        return {
            "policy/loss": self.loss / updates,
            **token_means(self.values[: len(SUMS)]),
            "learner/tokens": tokens,
            "learner/padding_fraction": 1 - tokens / max(1.0, positions),
        }
