"""The character tokenizer loses nothing and invents nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.characters import BOS, CHARACTERS, EOS, PAD, TAGS, character_tokenizer
from orchestrator.training.prompts.chat_template import (
    decode_responses,
    encode_text,
    end_of_turn,
    render_prompt,
)

TOKENIZER = character_tokenizer(context=64)


@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(CHARACTERS, max_size=8))).map("".join))
def test_decoding_is_the_inverse_of_encoding(text: str):
    assume(not any(special in text for special in (PAD, BOS, EOS)))
    assert decode_responses(TOKENIZER, [encode_text(TOKENIZER, text)]) == (text,)


def test_a_tag_is_one_token_and_a_character_is_one_token():
    ids = encode_text(TOKENIZER, "<think> 3+6\n</think><answer>9</answer>")
    assert TOKENIZER.convert_ids_to_tokens(ids) == [
        "<think>", " ", "3", "+", "6", "\n", "</think>", "<answer>", "9", "</answer>",
    ]  # fmt: skip


def test_the_vocabulary_is_specials_tags_and_printable_ascii():
    assert len(TOKENIZER) == 3 + 4 + 96
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, end_of_turn(TOKENIZER)) == (0, 1, 2)


def test_responses_are_shown_without_special_tokens_but_with_tags():
    ids = [*encode_text(TOKENIZER, "<answer>9</answer>"), end_of_turn(TOKENIZER), 0, 0]
    assert decode_responses(TOKENIZER, [ids, []]) == ("<answer>9</answer>", "")


@pytest.mark.parametrize("encode", [encode_text, render_prompt])
def test_an_unknown_character_is_named_in_the_error(encode: object):
    assert callable(encode)
    with pytest.raises(ConfigError, match="'é', '≤' in 'caf") as caught:
        encode(TOKENIZER, "café ≤ 3")
    assert caught.value.key == "prompt"


def test_plain_transformers_loads_the_tokenizer_and_rejects_unknown_characters(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think> wait,  3+6=9 </think>"
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text
    with pytest.raises(Exception, match="UNK"):
        loaded.encode("é")


def test_a_chat_template_makes_the_text_a_users_message():
    chat = character_tokenizer(context=64)
    chat.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert decode_responses(chat, [render_prompt(chat, "1+2=")]) == ("[user]1+2=[assistant]",)


def test_a_prompt_without_a_token_is_refused():
    with pytest.raises(ConfigError, match="prompt: got '', allowed: a prompt of at least one token"):
        render_prompt(TOKENIZER, "")
