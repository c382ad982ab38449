"""Changes to the logits from which a token is chosen: repetition penalty and minimum response length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from orchestrator.training.records import SamplingParams

_GROWTH = 64
"""Number of columns to spare when the table of seen tokens is enlarged."""


class Penalties:
    """`repetition_penalty` (Keskar et al. 2019) and `min_new_tokens` for rollouts with the same parameters.

    Rollouts are rows of a table, and a row can be reused. The penalty counts the tokens of the prompt and of
    the response, as in vLLM and transformers. The table lives on the device of the logits.
    """

    def __init__(
        self, sampling: SamplingParams, rows: int, ends: Sequence[int], device: torch.device
    ) -> None:
        self._penalty, self._minimum = sampling.repetition_penalty, sampling.min_new_tokens
        self._ends = torch.tensor(ends, device=device)
        # [rows, columns]: the prompt, then the response. Unused columns repeat a token of the prompt, which
        # is penalised anyway.
        self._seen = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self._filled = torch.zeros(rows, dtype=torch.int64)

    @classmethod
    def of(
        cls, sampling: SamplingParams, rows: int, ends: Sequence[int], device: torch.device
    ) -> Self | None:
        """The penalties for `sampling`, whose rollouts end at the tokens `ends`; None if it has none."""
        if sampling.repetition_penalty == 1 and sampling.min_new_tokens == 0:
            return None
        return cls(sampling, rows, ends, device)

    def start(self, rows: torch.Tensor, prompt: Sequence[int]) -> None:
        """Begin rollouts of `prompt` in these rows."""
        if self._penalty == 1:
            return
        self._widen(len(prompt))
        device = self._seen.device
        self._seen[rows.to(device)] = prompt[0]
        self._seen[rows.to(device), : len(prompt)] = torch.tensor(prompt, device=device)
        self._filled[rows] = len(prompt)

    def apply(self, logits: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The penalised logits, float32 [n, V]. Entry i samples token number `places[i]`, counted from 0, of
        the rollout in row `rows[i]`.
        """
        penalised = logits.float()
        if self._penalty != 1:
            seen = self._seen[rows.to(logits.device), : int(self._filled[rows].max())]
            found = penalised.gather(1, seen)
            changed = torch.where(found < 0, found * self._penalty, found / self._penalty)
            penalised = penalised.scatter(1, seen, changed)
        early = places < self._minimum
        if early.any():
            forbidden = torch.zeros_like(penalised, dtype=torch.bool)
            forbidden[:, self._ends[self._ends < logits.shape[-1]]] = True
            penalised = penalised.masked_fill(forbidden & early.to(logits.device)[:, None], -torch.inf)
        return penalised

    def note(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """Append the sampled `tokens` [n] to the rollouts in `rows` [n]."""
        if self._penalty == 1:
            return
        self._widen(int(self._filled[rows].max()) + 1)
        device = self._seen.device
        self._seen[rows.to(device), self._filled[rows].to(device)] = tokens.to(device)
        self._filled[rows] += 1

    def _widen(self, columns: int) -> None:
        if columns > self._seen.shape[1]:
            first = self._seen[:, :1] if self._seen.shape[1] else self._seen.new_zeros(len(self._seen), 1)
            spare = columns + _GROWTH - self._seen.shape[1]
            self._seen = torch.cat([self._seen, first.expand(-1, spare)], dim=1)
