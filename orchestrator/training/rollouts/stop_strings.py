"""Finds stop strings in the text of rollouts while they are sampled, as vLLM does.

A stop string may span several tokens, and begin or end in the middle of one. The rollout ends with the token
that completes it. All tokens are kept, and the text ends before the stop string.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from transformers import PreTrainedTokenizerFast

from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.response_text import ResponseText, append_tokens


class StopStrings:
    """The search for `sampling.stop` in rollouts with the same parameters. Rollouts are named by the rows
    that they occupy; a row can be reused.

    A stop string that is complete within the first `min_new_tokens` tokens does not end a rollout. If one
    token completes several, the one that is complete first counts, then the one that is listed first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, sampling: SamplingParams, ends: Set[int]) -> None:
        self._tokenizer, self._stop, self._ends = tokenizer, sampling.stop, ends
        self._minimum = sampling.min_new_tokens
        self._responses: dict[int, ResponseText] = {}
        self._lengths: dict[int, int] = {}  # characters before the stop string, by row

    def start(self, rows: Sequence[int]) -> None:
        """Begin rollouts in these rows."""
        for row in rows:
            self._responses[row] = ResponseText()
            self._lengths.pop(row, None)

    def completed(self, rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Whether each token completes a stop string of the rollout in its row, to which it is appended."""
        responses = [self._responses[row] for row in rows]
        added = append_tokens(self._tokenizer, responses, tokens, self._ends)
        found: list[bool] = []
        for row, response, new in zip(rows, responses, added, strict=True):
            length = self._length(response, new) if new else None
            if length is not None:
                self._lengths[row] = length
            found.append(length is not None)
        return found

    def text(self, row: int) -> str | None:
        """The text before the stop string that ended the rollout; None if none did."""
        length = self._lengths.get(row)
        return None if length is None else self._responses[row].text[:length]

    def _length(self, response: ResponseText, new: int) -> int | None:
        """Characters before the stop string that is complete first within the `new` last ones."""
        if len(response.tokens) <= self._minimum:
            return None
        known = len(response.text) - new
        matches = [
            (start, start + len(stop))
            for stop in self._stop
            if (start := response.text.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        return min(matches, key=lambda match: match[1])[0] if matches else None
