from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError, DatasetError
from orchestrator.training.prompts.questions import Question, QuestionStream
from orchestrator.training.prompts.split import split_questions


def question(text: str, content: str | None = None) -> Question:
    return Question(text, text if content is None else content, {}, {})


def finite(*questions: Question, heldout: list[Question] | None = None) -> QuestionStream:
    return QuestionStream(
        iter(questions), None if heldout is None else iter(heldout), False, "my.jsonl", "my.jsonl"
    )


def endless(questions: Iterator[Question | None]) -> QuestionStream:
    return QuestionStream(questions, None, True, "task.dataset", "the generator")


def test_heldout_first_then_training() -> None:
    split = split_questions(finite(*(question(text) for text in "aabbcd")), train_size=2, heldout_size=2)
    assert [q.text for q in split.heldout] == ["a", "b"]
    assert [q.text for q in split.train] == ["c", "d"]


def test_reorderings_of_a_heldout_question_are_not_trained_on() -> None:
    rows = [
        question("1,2=3", "12=3"),
        question("2,1=3", "12=3"),
        question("4,5=9", "45=9"),
        question("5,4=9", "45=9"),
    ]
    split = split_questions(finite(*rows), train_size=2, heldout_size=1)
    assert [q.text for q in split.heldout] == ["1,2=3"]
    assert [q.text for q in split.train] == ["4,5=9", "5,4=9"]


def test_texts_that_only_differ_in_case_and_white_space_are_equal() -> None:
    rows = [question("What is 2?"), question("what  is 2? "), question("What is 3?")]
    with pytest.raises(ConfigError, match="1 held-out prompts and 1 for training"):
        split_questions(finite(*rows), train_size=2, heldout_size=1)


def test_a_separate_heldout_split_shares_no_content() -> None:
    stream = finite(question("a"), question("b"), question("c"), heldout=[question("b"), question("z")])
    split = split_questions(stream, train_size=2, heldout_size=2)
    assert [q.text for q in split.heldout] == ["b", "z"]
    assert [q.text for q in split.train] == ["a", "c"]


def test_too_small_a_heldout_split_is_named() -> None:
    with pytest.raises(ConfigError, match=r"at most the distinct prompts of my\.jsonl: 1 held-out prompts"):
        split_questions(finite(question("a"), heldout=[question("b")]), train_size=1, heldout_size=2)


def test_an_empty_source() -> None:
    with pytest.raises(DatasetError, match=r"my\.jsonl: got my\.jsonl, allowed: at least one question"):
        split_questions(finite(), train_size=1, heldout_size=1)


def test_a_generator_with_too_few_questions_is_reported_with_their_number() -> None:
    rng = random.Random(0)
    draws = (question(str(rng.randrange(50))) for _ in itertools.count())
    with pytest.raises(ConfigError, match="of the generator: 10 held-out prompts and 40 for training"):
        split_questions(endless(draws), train_size=41, heldout_size=10)


def test_failed_attempts_of_a_generator_are_skipped() -> None:
    draws = (None if index % 3 else question(str(index)) for index in itertools.count())
    split = split_questions(endless(draws), train_size=5, heldout_size=2)
    assert [q.text for q in split.train] == ["6", "9", "12", "15", "18"]


def test_a_generator_that_always_fails_has_no_question() -> None:
    with pytest.raises(DatasetError):
        split_questions(endless(itertools.repeat(None)), train_size=5, heldout_size=2)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=80), st.integers(1, 5))
def test_splits_share_nothing(rows: list[tuple[int, int]], heldout_size: int) -> None:
    questions = [question(f"{content}.{order}", str(content)) for content, order in rows]
    try:
        split = split_questions(finite(*questions), train_size=5, heldout_size=heldout_size)
    except ConfigError:
        distinct = {q.text for q in questions}
        heldout = list(dict.fromkeys(q.content for q in questions))[:heldout_size]
        assert len(heldout) < heldout_size or sum(t.split(".")[0] not in heldout for t in distinct) < 5
    else:
        assert len({q.text for q in split.train}) == 5
        assert len({q.content for q in split.heldout}) == heldout_size
        assert not {q.content for q in split.train} & {q.content for q in split.heldout}
