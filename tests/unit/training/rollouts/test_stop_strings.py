"""Stop strings in tokens that do not begin or end where they do, with a byte-level vocabulary."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import decode_responses
from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.stop_strings import StopStrings


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the words "Answer", ":\\n" and "\\n\\nQ", each of which is one token."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in ("Answer", ":\u010a", "\u010a\u010aQ"):
        for length in range(2, len(word) + 1):
            if word[:length] not in vocabulary:
                merges.append((word[: length - 1], word[length - 1]))
                vocabulary[word[:length]] = len(vocabulary)
    vocabulary["<eos>"] = len(vocabulary)
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


TOKENIZER = byte_level_tokenizer()
EOS = int(TOKENIZER.convert_tokens_to_ids("<eos>"))  # pyright: ignore[reportArgumentType]
ENDS = frozenset({EOS})


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def stopped(tokens: list[int], *stop: str, min_new_tokens: int = 0) -> tuple[int | None, str | None]:
    """After how many tokens the only rollout ends (None: never), and its text."""
    sampling = SamplingParams(1.0, 1.0, 64, 0, stop=stop, min_new_tokens=min_new_tokens)
    search = StopStrings(TOKENIZER, sampling, ENDS)
    search.start([0])
    for count, token in enumerate(tokens, start=1):
        if search.completed([0], [token])[0]:
            return count, search.text(0)
    return None, search.text(0)


def test_the_words_are_tokens():
    assert len(ids("Answer:\n\n\nQ")) == 3


@pytest.mark.parametrize(
    ("text", "stop", "kept", "tokens"),
    [
        ("12 Answer", "Answer", "12 ", 4),
        ("12;34;", ";", "12", 3),
        ("1 Answer:\n2", "Answer:", "1 ", 4),  # ends in the middle of the token ":\n"
        ("1 Answer:\n2", "swer:\n2", "1 An", 5),  # begins in the middle of "Answer", spans three tokens
        ("1Answer7", "nsw", "1A", 2),  # begins and ends within one token
        ("ab", "ab", "", 2),
        ("aab", "ab", "a", 3),
        ("x\u00e9y", "\u00e9", "x", 3),  # a character of two tokens
        ("\u00e9\u00e8!", "\u00e8", "\u00e9", 4),
    ],
)
def test_a_rollout_ends_with_the_token_that_completes_the_stop_string(
    text: str, stop: str, kept: str, tokens: int
):
    assert stopped(ids(text), stop) == (tokens, kept)


def test_a_text_without_the_stop_string_goes_on():
    assert stopped(ids("Answe r\u00e9"), "Answer", "\u00e8") == (None, None)


def test_the_string_that_is_complete_first_counts():
    assert stopped(ids("1Answer"), "swer", "Answ") == (2, "1")
    assert stopped(ids("1Answer"), "Answ", "sw") == (2, "1")
    assert stopped(ids("1Answer"), "nsw", "Ans") == (2, "1")


def test_a_stop_string_within_the_first_tokens_does_not_count():
    assert stopped(ids("a;b;c;"), ";", min_new_tokens=1) == (2, "a")
    assert stopped(ids("a;b;c;"), ";", min_new_tokens=2) == (4, "a;b")
    assert stopped(ids("a;b;c;"), ";", min_new_tokens=6) == (None, None)


def test_end_tokens_have_no_text():
    assert stopped([*ids("a"), EOS], "<eos>", "e") == (None, None)


def test_rollouts_of_one_request_do_not_mix():
    sampling = SamplingParams(1.0, 1.0, 64, 0, stop=("ab",))
    search = StopStrings(TOKENIZER, sampling, ENDS)
    search.start([0, 1, 2])
    a, b, c = ids("abc")
    assert search.completed([0, 2], [a, c]) == [False, False]
    assert search.completed([2, 0], [a, c]) == [False, False]
    assert search.completed([1, 2, 0], [b, b, b]) == [False, True, False]
    assert [search.text(rollout) for rollout in range(3)] == [None, None, "c"]


def test_a_row_can_be_used_again():
    sampling = SamplingParams(1.0, 1.0, 64, 0, stop=("ab",))
    search = StopStrings(TOKENIZER, sampling, ENDS)
    a, b, c = ids("abc")
    search.start([0])
    assert [search.completed([0], [token])[0] for token in (c, a, b)] == [False, False, True]
    search.start([0])
    assert search.text(0) is None
    assert [search.completed([0], [token])[0] for token in (b, a, b)] == [False, False, True]
    assert search.text(0) == "b"


TEXTS = ("Answer:\n\n\nQ\u00e9, 3 \u20ac; Answer", "\u00e9\u20ac\n\nQ:\n")


@pytest.mark.parametrize("text", TEXTS)
def test_every_substring_is_found_where_whole_decodings_show_it(text: str):
    """The reference decodes the whole response after every token."""
    tokens = ids(text)
    for first, last in itertools.combinations(range(len(text) + 1), 2):
        stop = text[first:last]
        texts = decode_responses(TOKENIZER, [tokens[:count] for count in range(1, len(tokens) + 1)], ENDS)
        count = next(count for count, found in enumerate(texts, start=1) if stop in found)
        assert stopped(tokens, stop) == (count, text[: text.index(stop)])
