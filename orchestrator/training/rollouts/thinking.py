"""Limits the thinking of a response, as vLLM's `thinking_token_budget` does.

    budget 3    <think> a b c [</think>] the answer ...      the tag in brackets is forced

When a response has used up its budget and still thinks, the tokens of the closing tag take the place of
sampled ones, and the model continues behind the tag. What was forced is not trained on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import CLOSING_TAG, OPENING_TAG, encode_text
from orchestrator.training.rollouts.response_text import ResponseText, append_tokens

SAMPLED = -1
"""Stands for a token that is sampled."""


@dataclass(slots=True)
class _Rollout:
    is_thinking: bool
    response: ResponseText = field(default_factory=ResponseText)
    searched: int = 0
    """Characters of the text in which no tag begins that has not been read."""
    used: int = 0
    """Tokens sampled while thinking. If a response thinks again, it has what is left of the budget."""
    due: deque[int] = field(default_factory=deque[int])
    """Tokens of the closing tag that come next."""

    def read_tags(self) -> None:
        """Read the tags in the new part of the text."""
        text = self.response.text
        while True:
            tag = CLOSING_TAG if self.is_thinking else OPENING_TAG
            start = text.find(tag, self.searched)
            if start < 0:
                self.searched = max(self.searched, len(text) - len(tag) + 1)
                return
            self.searched, self.is_thinking = start + len(tag), not self.is_thinking


class ThinkingBudget:
    """The budget of rollouts with the same parameters. Rollouts are named by the rows that they occupy; a row
    can be reused. Tags are found in the text, so they may be several tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, budget: int) -> None:
        self._tokenizer, self._budget = tokenizer, budget
        self._closing = encode_text(tokenizer, CLOSING_TAG)
        self._rollouts: dict[int, _Rollout] = {}

    def start(self, rows: Sequence[int], prefill: str) -> None:
        """Begin rollouts in these rows. A response thinks from the start if its prompt ends with an opening
        tag: then `prefill`, the beginning of the response that the prompt contains, has it.
        """
        for row in rows:
            rollout = _Rollout(OPENING_TAG in prefill and CLOSING_TAG not in prefill)
            self._rollouts[row] = rollout
            self._close_if_used_up(rollout)

    def forced(self, rows: Sequence[int]) -> list[int]:
        """The next token of each rollout if it is forced, otherwise `SAMPLED`."""
        return [due[0] if (due := self._rollouts[row].due) else SAMPLED for row in rows]

    def note(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Append the `tokens` that were sampled or forced to the rollouts in `rows`."""
        rollouts = [self._rollouts[row] for row in rows]
        append_tokens(self._tokenizer, [rollout.response for rollout in rollouts], tokens)
        for rollout in rollouts:
            if rollout.due:
                rollout.due.popleft()
                if not rollout.due:  # whatever the tag decodes to in this place
                    rollout.is_thinking, rollout.searched = False, len(rollout.response.text)
                continue
            rollout.used += rollout.is_thinking
            rollout.read_tags()
            self._close_if_used_up(rollout)

    def _close_if_used_up(self, rollout: _Rollout) -> None:
        if rollout.is_thinking and rollout.used >= self._budget:
            rollout.due.extend(self._closing[self._begun(rollout.response.tokens) :])

    def _begun(self, tokens: Sequence[int]) -> int:
        """How many tokens of the closing tag the response already ends with."""
        sizes = range(len(self._closing) - 1, 0, -1)
        return next((size for size in sizes if list(tokens[-size:]) == self._closing[:size]), 0)
