"""The text of rollouts while they are sampled, decoded token by token."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import decode_responses


@dataclass(slots=True)
class ResponseText:
    """The response of one rollout, decoded as far as its tokens form whole characters.

    A token may decode differently after another one, so new text is the difference between two decodings:
    that of `tokens[context:]` and that of `tokens[context:decoded]`.
    """

    tokens: list[int] = field(default_factory=list[int])
    context: int = 0
    decoded: int = 0
    text: str = ""

    def extend(self, before: str, after: str) -> int:
        """Append the text that `after` adds to `before`. Returns the number of new characters: 0 as long as a
        character is incomplete.
        """
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return 0
        self.text += after[len(before) :]
        self.context, self.decoded = self.decoded, len(self.tokens)
        return len(after) - len(before)


def append_tokens(
    tokenizer: PreTrainedTokenizerFast,
    responses: Sequence[ResponseText],
    tokens: Sequence[int],
    hidden: Set[int] = frozenset(),
) -> list[int]:
    """Append one token to each response, without the text of `hidden` tokens. Returns the number of new
    characters of each.
    """
    for response, token in zip(responses, tokens, strict=True):
        response.tokens.append(token)
    before = [response.tokens[response.context : response.decoded] for response in responses]
    after = [response.tokens[response.context :] for response in responses]
    texts = decode_responses(tokenizer, before + after, hidden)
    count = len(responses)
    return [response.extend(texts[index], texts[count + index]) for index, response in enumerate(responses)]
