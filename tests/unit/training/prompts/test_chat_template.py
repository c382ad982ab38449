"""Rendering prompts and decoding responses: the effects of chat templates and tokenizers, one at a time."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.chat_template import (
    RenderedPrompt,
    decode_responses,
    encode_text,
    end_of_turn,
    render,
    render_all,
    render_prompt,
    stop_tokens,
)
from tests.fakes.chat_models import (
    BOS_ID,
    CHATML,
    ENDS_WITH_EOS,
    EOS_ID,
    IM_END_ID,
    OPENS_THINK,
    byte_tokenizer,
    chat_tokenizer,
)

QUESTION = "What is 1+1?"
ANSWER = "<think>2+2=4</think><answer>4</answer>"


def shown(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False))


# -- prompts -------------------------------------------------------------------------------------------------


def test_with_a_chat_template_the_text_is_a_users_message() -> None:
    tokenizer = chat_tokenizer(CHATML)
    expected = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert shown(tokenizer, render_prompt(tokenizer, "1+1")) == expected


@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_base_models_prompt_begins_with_the_tokenizers_prefix(adds_eos: bool) -> None:
    tokenizer = chat_tokenizer(adds_bos=True, adds_eos=adds_eos)
    prompt = render_prompt(tokenizer, QUESTION)
    assert prompt[0] == BOS_ID and EOS_ID not in prompt
    assert prompt == tokenizer.encode(QUESTION)[: len(prompt)]


def test_bos_is_neither_added_to_a_chat_template_nor_to_a_solution() -> None:
    tokenizer = chat_tokenizer(CHATML, adds_bos=True)
    assert BOS_ID not in render_prompt(tokenizer, QUESTION)
    assert BOS_ID not in encode_text(tokenizer, ANSWER)


def test_a_template_writes_its_own_bos_once() -> None:
    tokenizer = chat_tokenizer(OPENS_THINK, adds_bos=True)
    assert render_prompt(tokenizer, QUESTION).count(BOS_ID) == 1


@pytest.mark.parametrize(
    ("template", "prefill"),
    [
        (OPENS_THINK, "<think>\n"),
        (CHATML, ""),
        (CHATML.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"), "<think>\n\n</think>\n\n"),
        (None, ""),
    ],
)
def test_the_prefill_of_a_template_is_detected(template: str | None, prefill: str) -> None:
    assert render(chat_tokenizer(template), QUESTION).prefill == prefill


def test_the_task_of_a_base_model_may_open_the_thought() -> None:
    assert render(chat_tokenizer(), "1+1? <think>").prefill == "<think>"
    assert render(chat_tokenizer(), "Is <think> a tag?").prefill == ""


def test_batched_rendering_equals_single_rendering() -> None:
    tokenizer = chat_tokenizer(CHATML)
    texts = [f"{number}+{number}" for number in range(1005)]
    rendered = list(render_all(tokenizer, texts))
    assert len(rendered) == len(texts)
    assert [rendered[0], rendered[-1]] == [render(tokenizer, texts[0]), render(tokenizer, texts[-1])]
    assert list(render_all(tokenizer, [])) == []


def test_an_unknown_character_is_named_in_one_of_many_prompts() -> None:
    with pytest.raises(ConfigError, match="prompt: got 'é' in 'café'"):
        list(render_all(chat_tokenizer(), ["1+1", "café", "ö"]))


def test_a_template_that_rejects_the_message_is_reported() -> None:
    tokenizer = chat_tokenizer("{{ raise_exception('a system message is required') }}")
    with pytest.raises(ConfigError, match="a system message is required"):
        render(tokenizer, QUESTION)


# -- the vocabulary ------------------------------------------------------------------------------------------


def test_an_unknown_token_in_the_template_is_accepted() -> None:
    tokenizer = chat_tokenizer(ENDS_WITH_EOS, unknown="</s>")
    expected = "<|im_start|>user\n1+1</s>\n<|im_start|>assistant\n"
    assert shown(tokenizer, render_prompt(tokenizer, "1+1")) == expected


@pytest.mark.parametrize("unknown", ["</s>", "<pad>", None])
def test_a_character_outside_the_vocabulary_is_named(unknown: str | None) -> None:
    tokenizer = chat_tokenizer(ENDS_WITH_EOS, unknown=unknown)
    with pytest.raises(ConfigError, match="prompt: got 'é', '≤' in ") as caught:
        render(tokenizer, "café ≤ 3, encore: é")
    assert caught.value.allowed == "characters of the model's vocabulary"


def test_a_byte_vocabulary_contains_every_text() -> None:
    assert len(render_prompt(byte_tokenizer(), "数" * 100)) == 300


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special_tags", [False, True])
def test_the_tags_of_an_answer_are_shown_even_if_they_are_special_tokens(special_tags: bool) -> None:
    tokenizer = chat_tokenizer(CHATML, special_tags=special_tags)
    tokens = [*encode_text(tokenizer, ANSWER), end_of_turn(tokenizer)]
    assert decode_responses(tokenizer, [tokens, []], stop_tokens(tokenizer)) == (ANSWER, "")


def test_padding_and_the_tokens_that_end_an_answer_are_not_shown() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert decode_responses(tokenizer, [[BOS_ID, 20, EOS_ID, IM_END_ID, 0]], frozenset({IM_END_ID})) == (
        tokenizer.decode([20]),
    )


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, IM_END_ID),
        (ENDS_WITH_EOS, EOS_ID),
        (OPENS_THINK, EOS_ID),  # it writes no end
        (None, EOS_ID),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), EOS_ID),  # not to be found
        ("{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}", EOS_ID),
    ],
)
def test_the_end_of_turn_token_is_found(template: str | None, token: int) -> None:
    assert end_of_turn(chat_tokenizer(template)) == token


def test_stop_tokens_are_the_ends_of_turn_and_sequence_and_those_of_the_model() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert stop_tokens(tokenizer) == {EOS_ID, IM_END_ID}
    assert stop_tokens(tokenizer, 7) == {EOS_ID, IM_END_ID, 7}
    assert stop_tokens(tokenizer, [7, 8]) == {EOS_ID, IM_END_ID, 7, 8}


def test_a_tokenizer_without_any_end_is_refused() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="a tokenizer without eos_token"):
        end_of_turn(tokenizer)


def test_a_prompt_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt: got '', allowed: a prompt of at least one token"):
        render(chat_tokenizer(), "")


def test_a_rendered_prompt_is_its_tokens_and_its_prefill() -> None:
    assert render(chat_tokenizer(), "1") == RenderedPrompt(encode_text(chat_tokenizer(), "1"), "")
