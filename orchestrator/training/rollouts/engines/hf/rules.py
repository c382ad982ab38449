"""What follows from one `SamplingParams`: how tokens are chosen, and where rollouts end."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import RenderedPrompt, decode_responses
from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.penalties import Penalties
from orchestrator.training.rollouts.sampling import sample
from orchestrator.training.rollouts.stop_strings import StopStrings
from orchestrator.training.rollouts.thinking import ThinkingBudget


@dataclass(frozen=True, slots=True)
class ChosenTokens:
    """One token for each of n rollouts, on the CPU."""

    tokens: torch.Tensor  # [n] int64
    logprobs: torch.Tensor  # [n] float32
    stopped: torch.Tensor  # [n] bool: it ends its rollout
    forced: torch.Tensor  # [n] bool: it was not sampled


class SamplingRules:
    """Samples for the rollouts of a table that share their parameters. Rollouts are named by their rows."""

    def __init__(
        self,
        sampling: SamplingParams,
        tokenizer: PreTrainedTokenizerFast,
        stops: Set[int],
        rows: int,
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self._tokenizer, self._device = tokenizer, device
        self._ends = stops | set(sampling.stop_token_ids)
        ends = sorted(self._ends)
        self._end_tokens = torch.tensor(ends)
        self._penalties = Penalties.of(sampling, rows, ends, device)
        self._stop_strings = StopStrings(tokenizer, sampling, self._ends) if sampling.stop else None
        budget = sampling.thinking_token_budget
        self._thinking = None if budget is None else ThinkingBudget(tokenizer, budget)

    def start(self, rows: torch.Tensor, prompt: RenderedPrompt) -> None:
        """Begin rollouts of `prompt` in these rows."""
        if self._penalties is not None:
            self._penalties.start(rows, prompt.tokens)
        if self._stop_strings is not None:
            self._stop_strings.start(rows.tolist())
        if self._thinking is not None:
            self._thinking.start(rows.tolist(), prompt.prefill)

    def choose(
        self, logits: torch.Tensor, draws: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> ChosenTokens:
        """Sample token number `places[i]`, counted from 0, of the rollout in row `rows[i]`, from `logits`
        [n, V] and `draws` [n].
        """
        penalties, thinking = self._penalties, self._thinking
        penalised = None if penalties is None else penalties.apply(logits, rows, places)
        forced = None if thinking is None else torch.tensor(thinking.forced(rows.tolist()))
        tokens, logprobs = sample(logits, draws.to(self._device), self.sampling, penalised, forced)
        tokens, logprobs = tokens.cpu(), logprobs.cpu()
        if penalties is not None:
            penalties.note(rows, tokens)
        if thinking is not None:
            thinking.note(rows.tolist(), tokens.tolist())
        stopped = torch.isin(tokens, self._end_tokens)
        if self._stop_strings is not None:
            stopped |= torch.tensor(self._stop_strings.completed(rows.tolist(), tokens.tolist()))
        was_forced = torch.zeros_like(stopped) if forced is None else forced >= 0
        return ChosenTokens(tokens, logprobs, stopped, was_forced)

    def texts(self, rows: Sequence[int], responses: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """The text of the finished rollouts in `rows`, which sampled the tokens `responses`."""
        texts = decode_responses(self._tokenizer, responses, self._ends)
        if self._stop_strings is None:
            return texts
        before = [self._stop_strings.text(row) for row in rows]
        return tuple(whole if text is None else text for whole, text in zip(texts, before, strict=True))
