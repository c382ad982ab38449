"""From text to tokens and back: one way for the engines, the cold start and the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError


def render_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The token ids that a model reads before it answers `text`.

    With a chat template: `text` as the user's message and the header of the assistant's turn. Without: the
    plain text. Raises ConfigError if `text` has a character that the vocabulary lacks, or gives no token.
    """
    rendered = text
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": text}]
        rendered = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    ids = encode_text(tokenizer, rendered)
    if not ids:
        raise ConfigError("prompt", repr(text), "at least one token", "a model has nothing to continue from")
    return ids


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The token ids of `text` and nothing else (no special token is added).

    Raises ConfigError, with the characters named, if the vocabulary can't express the text: an unknown token
    in its place would make the model answer another question without anyone noticing.
    """
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:
        # The tokenizers library raises bare Exception for a token outside the vocabulary.
        raise _unknown(tokenizer, text) from error
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise _unknown(tokenizer, text)
    return ids


def end_of_sequence(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the end-of-sequence token. Raises ConfigError if the tokenizer has none."""
    if not isinstance(tokenizer.eos_token_id, int):
        raise ConfigError(
            "model",
            "a tokenizer without eos_token",
            "a tokenizer with one",
            "set it in tokenizer_config.json",
        )
    return tokenizer.eos_token_id


def decode_responses(
    tokenizer: PreTrainedTokenizerFast, responses: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """The text of each response, without special tokens (end of sequence, padding)."""
    return tuple(tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True))


def _unknown(tokenizer: PreTrainedTokenizerFast, text: str) -> ConfigError:
    vocabulary = tokenizer.get_vocab()
    characters = sorted({character for character in text if character not in vocabulary})
    excerpt = text if len(text) <= 60 else text[:57] + "..."
    return ConfigError(
        "prompt",
        f"{', '.join(map(repr, characters)) or 'unknown characters'} in {excerpt!r}",
        "characters of the model's vocabulary",
        "change the task's text, or use a model whose tokenizer knows them",
    )
