"""Counts how routers distribute tokens over experts, and balances them with DeepSeek-V3's selection bias.
Padding is not counted.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.training.models.routers import (
    BIAS,
    Seen,
    find_routers,
    number_of_experts,
    observe,
    scores_by_sigmoid,
)


@dataclass(frozen=True, slots=True)
class RoutingSums:
    """Counts of R routers with E experts over some tokens, in float64."""

    loads: Tensor  # [R, E]: how often each expert was chosen
    entropies: Tensor  # [R]: sum over tokens of the entropy of the router's distribution, in nats
    tokens: Tensor  # []: how many tokens were counted

    def __add__(self, other: RoutingSums) -> RoutingSums:
        return RoutingSums(
            self.loads + other.loads, self.entropies + other.entropies, self.tokens + other.tokens
        )

    def all_reduce(self) -> RoutingSums:
        """The sums of all ranks, in one message. Collective."""
        message = torch.cat([self.loads.flatten(), self.entropies, self.tokens[None]])
        dist.all_reduce(message)
        loads, entropies, tokens = message.split([self.loads.numel(), self.entropies.numel(), 1])
        return RoutingSums(loads.view_as(self.loads), entropies, tokens[0])

    @property
    def mean_entropies(self) -> Tensor:
        """[R], in nats."""
        return self.entropies / self.tokens.clamp(min=1)


class RoutingMeter:
    """Counts for each layer how often each expert was chosen, and sums the router's entropy."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        """Create the meter after experts have been distributed over ranks. `device` is
        the device of the model.
        """
        self.routers = find_routers(model)
        self._experts = number_of_experts(model)
        self._real: Tensor | None = None
        self._zeros = RoutingSums(
            torch.zeros(len(self.routers), self._experts, dtype=torch.float64, device=device),
            torch.zeros(len(self.routers), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.float64, device=device),
        )
        self.reset()
        for index, router in enumerate(self.routers.values()):
            observe(router, self._seen(index, scores_by_sigmoid(router)))

    @contextmanager
    def counting(self, real: Tensor) -> Generator[None]:
        """Count the forward pass inside the context; `real` [T] bool is False on padding. Nothing is counted
        outside: neither recomputation in the backward pass nor a pass of the reference model.
        """
        self._real = real
        if self.routers:
            self._sums.tokens.add_(real.sum())
        try:
            yield
        finally:
            self._real = None

    @property
    def sums(self) -> RoutingSums:
        """The counts since the last `reset`."""
        return self._sums + self._zeros

    def reset(self) -> None:
        """Start from zero."""
        self._sums = self._zeros + self._zeros

    def metrics(self, sums: RoutingSums) -> Mapping[str, float]:
        """From the sums of all ranks; empty for a dense model.

        - `moe/expert_load_max_over_mean`: load of the busiest expert over the mean load, mean over layers; 1
          is perfect balance.
        - `moe/router_entropy`: of the router's distribution over experts, in nats, mean over
          tokens and layers.
        - `moe/bias_norm`: L2 norm of all selection biases; absent where the family has none.
        """
        if not self.routers or sums.tokens == 0:
            return {}
        found = {
            "moe/expert_load_max_over_mean": float((sums.loads.amax(dim=1) / sums.loads.mean(dim=1)).mean()),
            "moe/router_entropy": float(sums.mean_entropies.mean()),
        }
        biases = [bias for bias in self._biases() if bias is not None]
        if biases:
            found["moe/bias_norm"] = float(torch.linalg.vector_norm(torch.cat(biases).double()))
        return found

    @torch.no_grad()
    def update_biases(self, sums: RoutingSums, speed: float) -> None:
        """Increase an expert's selection bias by `speed` if its load was below the mean, and decrease it if
        its load was above. Has the same effect on all ranks.

        DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.1.2 (auxiliary-loss-free load balancing), after each
        optimizer step.
        """
        for bias, load in zip(self._biases(), sums.loads, strict=True):
            if bias is not None:
                bias += speed * torch.sign(load.mean() - load).to(bias)

    def _biases(self) -> list[Tensor | None]:
        return [getattr(router, BIAS, None) for router in self.routers.values()]

    def _seen(self, index: int, sigmoid: bool) -> Seen:
        def seen(logits: Tensor, chosen: Tensor) -> None:
            if self._real is not None:
                self._count(index, logits.detach(), chosen, sigmoid)

        return seen

    @torch.no_grad()
    def _count(self, index: int, logits: Tensor, chosen: Tensor, sigmoid: bool) -> None:
        """Scores of a sigmoid are normalised here."""
        assert self._real is not None
        real = self._real.to(torch.float32)
        weights = real.repeat_interleave(chosen.shape[-1])
        self._sums.loads[index] += torch.bincount(chosen.flatten(), weights, minlength=self._experts)
        scores = logits.float().sigmoid() if sigmoid else logits.float().softmax(dim=-1)
        # H(s / z) = log z - sum(s log s) / z with z the sum of the scores
        total = scores.sum(dim=-1)
        entropies = total.log() + torch.special.entr(scores).sum(dim=-1) / total
        self._sums.entropies[index] += torch.dot(entropies, real)
