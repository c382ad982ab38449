"""Changes to the logits from which a token is chosen: repetition penalty and minimum response length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from orchestrator.training.records import SamplingParams


class Penalties:
    """`repetition_penalty` (Keskar et al. 2019) and `min_new_tokens` for the N rollouts of one request.

    The penalty counts the tokens of the prompt and of the response, as in vLLM and transformers. The tokens
    live on the device of the logits.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        ends: Sequence[int],
        device: torch.device,
    ) -> None:
        self._penalty, self._minimum = sampling.repetition_penalty, sampling.min_new_tokens
        self._ends = torch.tensor(ends, device=device)
        self._width = max(map(len, prompts))
        # [N, columns]: the prompt, then the response. Unused columns repeat a token of the prompt, which is
        # penalised anyway.
        seen = torch.tensor([[*prompt, *[prompt[0]] * (self._width - len(prompt))] for prompt in prompts])
        room = sampling.max_new_tokens if self._penalty != 1 else 0
        seen = torch.cat([seen, seen[:, :1].expand(-1, room)], dim=1)
        self._seen = seen.repeat_interleave(group_size, dim=0).to(device)

    @classmethod
    def of(
        cls,
        sampling: SamplingParams,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        ends: Sequence[int],
        device: torch.device,
    ) -> Self | None:
        """The penalties of a request, whose rollouts end at the tokens `ends`; None if it asks for none."""
        if sampling.repetition_penalty == 1 and sampling.min_new_tokens == 0:
            return None
        return cls(sampling, prompts, group_size, ends, device)

    def apply(self, logits: torch.Tensor, rollouts: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The penalised logits, float32 [n, V]. Row i samples token number `places[i]`, counted from 0, of
        rollout `rollouts[i]`.
        """
        penalised = logits.float()
        if self._penalty != 1:
            seen = self._seen[rollouts.to(logits.device), : self._width + int(places.max())]
            found = penalised.gather(1, seen)
            changed = torch.where(found < 0, found * self._penalty, found / self._penalty)
            penalised = penalised.scatter(1, seen, changed)
        early = places < self._minimum
        if early.any():
            forbidden = torch.zeros_like(penalised, dtype=torch.bool)
            forbidden[:, self._ends[self._ends < logits.shape[-1]]] = True
            penalised = penalised.masked_fill(forbidden & early.to(logits.device)[:, None], -torch.inf)
        return penalised

    def note(self, rollouts: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> None:
        """Remember the sampled `tokens` [n]."""
        if self._penalty != 1:
            device = self._seen.device
            self._seen[rollouts.to(device), self._width + places.to(device)] = tokens.to(device)
