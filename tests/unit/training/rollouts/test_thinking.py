"""The thinking budget, with tags of one token and of many."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.rollouts.thinking import SAMPLED, ThinkingBudget
from tests.unit.training.rollouts.test_stop_strings import byte_level_tokenizer

ONE_TOKEN, MANY_TOKENS = character_tokenizer(64), byte_level_tokenizer()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [ONE_TOKEN, MANY_TOKENS], ids=["one token", "many tokens"])


def continued(tokenizer: PreTrainedTokenizerFast, budget: int, prefill: str, sampled: str) -> tuple[str, str]:
    """The response, if the model would write `sampled`, and the text of its forced tokens."""
    limit, response, taken = ThinkingBudget(tokenizer, budget), list[int](), list[int]()
    limit.start([3], prefill)
    waiting = tokenizer.encode(sampled, add_special_tokens=False)
    while waiting or limit.forced([3]) != [SAMPLED]:
        (forced,) = limit.forced([3])
        if forced == SAMPLED:
            response.append(waiting.pop(0))
        else:
            response.append(forced)
            taken.append(forced)
        limit.note([3], [response[-1]])
    return str(tokenizer.decode(response)), str(tokenizer.decode(taken))


@TOKENIZERS
@pytest.mark.parametrize(
    ("prefill", "sampled", "response", "forced"),
    [
        ("", "no thought at all", "no thought at all", ""),
        ("", "<think>abc", "<think>abc</think>", "</think>"),
        ("", "so <think>abcde", "so <think>abc</think>de", "</think>"),
        ("<think>\n", "abcde", "abc</think>de", "</think>"),
        ("<think></think>", "abcde", "abcde", ""),
        ("<think>\n", "ab", "ab", ""),
        ("<think>", "abcd<think>e", "abc</think>d<think></think>e", "</think></think>"),
    ],
)
def test_the_closing_tag_follows_the_last_token_of_the_budget(
    tokenizer: PreTrainedTokenizerFast, prefill: str, sampled: str, response: str, forced: str
) -> None:
    assert continued(tokenizer, 3, prefill, sampled) == (response, forced)


@TOKENIZERS
def test_a_second_thought_has_what_is_left_of_the_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    tag = len(tokenizer.encode("</think>", add_special_tokens=False))  # sampled while thinking
    found = continued(tokenizer, 2 + tag, "<think>", "a</think>b<think>cde")
    assert found == ("a</think>b<think>c</think>de", "</think>")


@TOKENIZERS
def test_a_budget_of_0_leaves_no_thought(tokenizer: PreTrainedTokenizerFast) -> None:
    assert continued(tokenizer, 0, "<think>", "ab") == ("</think>ab", "</think>")


def test_a_tag_that_was_begun_is_completed() -> None:
    assert continued(MANY_TOKENS, 5, "<think>", "ab</t") == ("ab</think>", "hink>")


def test_a_tag_of_one_token_is_never_spelled() -> None:
    assert continued(ONE_TOKEN, 3, "<think>", "a <5") == ("a <</think>5", "</think>")


def test_a_tag_that_ends_with_the_budget_is_not_repeated() -> None:
    assert continued(ONE_TOKEN, 3, "<think>", "ab</think>cde") == ("ab</think>cde", "")


def test_rows_are_independent_and_can_be_reused() -> None:
    limit = ThinkingBudget(ONE_TOKEN, 1)
    closing = ONE_TOKEN.convert_tokens_to_ids("</think>")
    limit.start([0, 5], "<think>")
    limit.start([2], "")
    letter = ONE_TOKEN.encode("a", add_special_tokens=False)[0]
    limit.note([0, 2], [letter, letter])
    assert limit.forced([0, 2, 5]) == [closing, SAMPLED, SAMPLED]
    limit.start([0], "<think>")
    assert limit.forced([0]) == [SAMPLED]
