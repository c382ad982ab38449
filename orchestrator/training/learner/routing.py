"""How tokens spread over experts: counted at the routers, and steered by DeepSeek-V3's selection bias. Only
real tokens count: padding is computed and ignored.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
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


class RoutingMeter:
    """Counts, layer by layer, how often each expert was chosen and how undecided the router was.

    `sums` is one vector, so that ranks need one all-reduce: for each of the R routers E loads, then R
    entropies, then the number of tokens.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        """Build it once experts are spread over ranks; `device` is where the model runs."""
        self.routers = find_routers(model)
        self._experts = number_of_experts(model)
        self._real: Tensor | None = None
        count = len(self.routers)
        self._loads = torch.zeros(count, self._experts, dtype=torch.float64, device=device)
        self._entropies = torch.zeros(count, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(1, dtype=torch.float64, device=device)
        for index, router in enumerate(self.routers.values()):
            observe(router, self._seen(index, scores_by_sigmoid(router)))

    @contextmanager
    def counting(self, real: Tensor) -> Generator[None]:
        """Count the forward pass inside; `real` [T] bool is False on padding. Outside of it nothing is
        counted (a recomputed forward during backward, a reference pass).
        """
        self._real = real
        if self.routers:
            self._tokens += real.sum()
        try:
            yield
        finally:
            self._real = None

    @property
    def sums(self) -> Tensor:
        """What was counted since the last `reset`, [R * E + R + 1] float64; adds up over ranks."""
        return torch.cat([self._loads.flatten(), self._entropies, self._tokens])

    def reset(self) -> None:
        """Start from zero."""
        for counter in (self._loads, self._entropies, self._tokens):
            counter.zero_()

    def loads(self, sums: Tensor) -> Tensor:
        """Tokens that each expert was chosen for, [R, E], from the sums of all ranks."""
        return sums[: self._loads.numel()].view_as(self._loads)

    def metrics(self, sums: Tensor) -> Mapping[str, float]:
        """From the sums of all ranks; empty for a dense model.

        - `moe/expert_load_max_over_mean`: load of the busiest expert over the mean load, mean over layers; 1
          is perfect balance.
        - `moe/router_entropy`: of the router's distribution over experts, in nats, mean over
          tokens and layers.
        - `moe/bias_norm`: L2 norm of all selection biases; absent where the family has none.
        """
        tokens = float(sums[-1])
        if not self.routers or tokens == 0:
            return {}
        loads = self.loads(sums)
        entropies = sums[self._loads.numel() : -1]
        found = {
            "moe/expert_load_max_over_mean": float((loads.amax(dim=1) / loads.mean(dim=1)).mean()),
            "moe/router_entropy": float(entropies.mean()) / tokens,
        }
        biases = [bias for bias in self._biases() if bias is not None]
        if biases:
            found["moe/bias_norm"] = float(torch.linalg.vector_norm(torch.cat(biases).double()))
        return found

    @torch.no_grad()
    def update_biases(self, sums: Tensor, speed: float) -> None:
        """Move each expert's selection bias by `speed` up if it had less than the mean load, down if more.
        The same on all ranks.

        DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.1.2 (auxiliary-loss-free load balancing), after each
        optimizer step.
        """
        for bias, load in zip(self._biases(), self.loads(sums), strict=True):
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
        """A sigmoid's scores are normalised here."""
        assert self._real is not None
        real = self._real.to(torch.float32)
        weights = real.repeat_interleave(chosen.shape[-1])
        self._loads[index] += torch.bincount(chosen.flatten(), weights, minlength=self._experts)
        scores = logits.float().sigmoid() if sigmoid else logits.float().softmax(dim=-1)
        # H(s / z) = log z - sum(s log s) / z with z the sum of the scores
        total = scores.sum(dim=-1)
        entropies = total.log() + torch.special.entr(scores).sum(dim=-1) / total
        self._entropies[index] += torch.dot(entropies, real)
