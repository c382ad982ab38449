"""Tokenizes prompts and decodes responses. Engines, cold start, evaluation and the checks before a run all
render prompts through this module, so that they agree token for token.

    tokenizer with a chat template           tokenizer without one (a base model)
    the text becomes the user's message,     the text itself, after the special tokens
    followed by the header of the            that the tokenizer puts in front of a text
    assistant's turn                         (BOS)

A chat template also makes other decisions, which are explicit here:

- `RenderedPrompt.prefill` is the beginning of the response that the template has already written, such as the
  `<think>` in the templates of DeepSeek-R1's distilled models. The model continues from there and does not
  repeat it. A scorer that checks the format of a response must therefore read `prefill + response`.
- `end_of_turn` is the token that ends the assistant's turn. It need not be the tokenizer's end-of-sequence
  token: for Qwen2.5's base models it is `<|im_end|>`, while `eos_token` is `<|endoftext|>`.
- `stop_tokens` are all tokens at which a rollout ends.
- Some templates write BOS, others do not. Nothing is added to the output of the template, as in transformers'
  own `apply_chat_template(tokenize=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError

OPENING_TAG, CLOSING_TAG = "<think>", "</think>"
"""The tags around the thinking of a response."""
_PREFILL = re.compile(r"<think>\s*(?:</think>\s*)?$")
"""The beginning of a response that a template may write: an open thought, or
an empty one if thinking is off.
"""
_QUESTION, _ANSWER = "1+1", "SampleAnswer"
_BATCH = 1000
"""Number of texts that are tokenized in one call."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The tokens that a model reads before it responds."""

    tokens: list[int]
    prefill: str
    """The beginning of the response that the prompt already contains (`<think>`
    and white space); usually empty.
    """


def render(tokenizer: PreTrainedTokenizerFast, text: str) -> RenderedPrompt:
    """Render the prompt for `text`.

    Raises ConfigError if the chat template rejects the message, if `text` contains a character that the
    vocabulary lacks, or if the result has no tokens.
    """
    (rendered,) = render_all(tokenizer, [text])
    return rendered


def render_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return only the tokens of `render`."""
    return render(tokenizer, text).tokens


def render_all(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[RenderedPrompt]:
    """Apply `render` to each text, tokenized in batches."""
    is_base = tokenizer.chat_template is None
    for first in range(0, len(texts), _BATCH):
        batch = texts[first : first + _BATCH]
        written = batch if is_base else [_as_users_message(tokenizer, text) for text in batch]
        for text, ids in zip(written, _encode_all(tokenizer, written, prefix=is_base), strict=True):
            if not ids:
                raise ConfigError("prompt", repr(text), "a prompt of at least one token")
            found = _PREFILL.search(text)
            yield RenderedPrompt(ids, found.group(0) if found else "")


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokenize `text` without any special token around it, as a model would write it.

    Raises ConfigError naming the characters that the vocabulary lacks: unknown tokens
    would silently change the text.
    """
    (ids,) = _encode_all(tokenizer, [text], prefix=False)
    return ids


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[list[int]]:
    """Apply `encode_text` to each text, in batches."""
    for first in range(0, len(texts), _BATCH):
        yield from _encode_all(tokenizer, texts[first : first + _BATCH], prefix=False)


def decode_responses(
    tokenizer: PreTrainedTokenizerFast, responses: Sequence[Sequence[int]], stops: Set[int] = frozenset()
) -> tuple[str, ...]:
    """Decode each response, without padding, BOS, EOS and the tokens in `stops`.

    Other special tokens are kept. The tags of the answer format are special tokens in some
    vocabularies, and scorers must see them.
    """
    ends = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    hidden = stops | {token for token in ends if isinstance(token, int)}
    visible = [[token for token in response if token not in hidden] for response in responses]
    return tuple(tokenizer.batch_decode(visible, skip_special_tokens=False))


def without_prefill(answer: str, prefill: str) -> str:
    """Remove `prefill` from the start of `answer`: what remains for the model to write.

    >>> without_prefill("<think>1+1=2</think>2", "<think>\\n")
    '1+1=2</think>2'
    """
    opened = prefill.strip()
    return answer.removeprefix(opened) if opened else answer


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the token that ends a response: the first special token that the chat template writes after the
    assistant's message, or else the end-of-sequence token. Raises ConfigError if there is neither.
    """
    found = None if tokenizer.chat_template is None else _end_of_turn_in_template(tokenizer)
    if found is not None:
        return found
    if not isinstance(tokenizer.eos_token_id, int):
        raise ConfigError(
            "model",
            "a tokenizer without eos_token",
            "a tokenizer with one",
            "set eos_token in tokenizer_config.json",
        )
    return tokenizer.eos_token_id


def stop_tokens(
    tokenizer: PreTrainedTokenizerFast, declared: int | Sequence[int] | None = None
) -> frozenset[int]:
    """Return the tokens at which a rollout ends: the end of the turn, the end of the sequence, and those
    `declared` in the model's generation config. Raises ConfigError if there is none.
    """
    found = {end_of_turn(tokenizer)}
    if isinstance(tokenizer.eos_token_id, int):
        found.add(tokenizer.eos_token_id)
    return frozenset(found.union([declared] if isinstance(declared, int) else declared or ()))


def _as_users_message(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise ConfigError(
            "model",
            f"a chat template that fails on a user's message: {error}",
            "a chat template that accepts a single user message without a system prompt",
        ) from error


def _end_of_turn_in_template(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Return None if the template shows no end of turn: it fails on an assistant's message, or
    writes no special token after it.
    """
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        written = str(tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))
    except TemplateError:
        return None
    _, found, tail = written.rpartition(_ANSWER)
    if not found:
        return None
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((token for token in encode_text(tokenizer, tail) if token in special), None)


# -- text to tokens ------------------------------------------------------------------------------------------


def _encode_all(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, prefix: bool) -> list[list[int]]:
    """Tokenize each text; with `prefix`, including the special tokens that the tokenizer puts in front of a
    text. Special tokens after the text (EOS) are removed, because they would end the prompt.
    """
    try:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=prefix,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
    except Exception as error:
        # The tokenizers library raises bare Exception for a token outside a vocabulary without unk_token.
        raise _first_unknown(tokenizer, texts) from error
    rows: list[list[int]] = []
    for text, ids, mask in zip(texts, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while end and mask[end - 1]:
            end -= 1
        if tokenizer.unk_token_id in ids:
            _require_known(tokenizer, text)
        rows.append(ids[:end])
    return rows


def _require_known(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Raise ConfigError if a part of `text` became the unknown token. The text may also contain that token
    itself: in some vocabularies it is the end-of-sequence token, which chat templates use.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    unknown = {
        text[start:end]
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if token == tokenizer.unk_token_id and text[start:end].strip() != tokenizer.unk_token
    }
    if unknown:
        raise _unknown(text, unknown)


def _first_unknown(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> ConfigError:
    """Build the error for the first text that cannot be tokenized."""
    text = next((text for text in texts if not _is_known(tokenizer, text)), texts[0])
    return _unknown(text, {character for character in text if not _is_known(tokenizer, character)})


def _is_known(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    try:
        tokenizer(text, add_special_tokens=False, verbose=False)
    except Exception:  # noqa: BLE001  (see _encode_all)
        return False
    return True


def _unknown(text: str, unknown: Set[str]) -> ConfigError:
    excerpt = text if len(text) <= 60 else text[:57] + "..."
    return ConfigError(
        "prompt",
        f"{', '.join(map(repr, sorted(unknown))) or 'unknown characters'} in {excerpt!r}",
        "characters of the model's vocabulary",
        "change the task's text, or use a model whose tokenizer knows them",
    )
