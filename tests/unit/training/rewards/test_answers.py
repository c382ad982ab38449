from __future__ import annotations

import pytest

from orchestrator.training.rewards.answers import AnswerFormat, find_answer
from tests.fakes.graded import completion


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> 7 </answer>", "7"),
        ("<answer>3</answer> wait <answer>4</answer>", "4"),
        ("<answer>3</answer><answer>4", "3"),
        ("<answer>3<answer>4</answer>", "4"),
        ("<answer></answer>", ""),
        ("<answer>3", None),
        ("3</answer>", None),
        ("7", None),
        ("", None),
        (r"\boxed{7} #### 7, the answer is 7", None),
    ],
)
def test_the_last_complete_pair_of_tags_counts(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think><answer>3</answer>", None),
        ("<think><answer>3</answer></think>", None),
        ("<think><answer>3</answer></think><answer>4</answer>", "4"),
        ("<answer>4</answer><think>or <answer>5</answer>", "4"),
        ("<think>a</think><think>b <answer>3</answer>", None),
    ],
)
def test_a_thought_is_not_an_answer(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer>3</answer>", None),
        ("so <answer>3</answer></think><answer>4</answer>", "4"),
        ("3</think>4", None),
    ],
)
def test_a_thought_opened_by_the_prompt_is_removed(text: str, answer: str | None) -> None:
    assert completion(text, prefill="<think>\n").answer == answer
    assert completion(text, prompt="2+2?\n<think>").answer == answer
    assert completion(text, prefill="<think>\n</think>\n").answer == find_answer(text)


@pytest.mark.parametrize(
    ("text", "name", "answer"),
    [
        (r"so $x = \boxed{\frac{1}{2}}$.", "boxed", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "boxed", "2"),
        (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
        (r"\fbox{3}", "boxed", "3"),
        (r"\boxed 42.", "boxed", "42"),
        (r"\boxed{1} and \boxed{2", "boxed", "1"),
        (r"\boxed{", "boxed", None),
        ("no box", "boxed", None),
        ("x <<1+1=2>>\n#### 1,234\n", "hashes", "1,234"),
        ("#### 1\n#### 2", "hashes", "2"),
        ("####", "hashes", None),
        ("The answer is 42.", "phrase", "42"),
        ("Therefore, the final answer is: **42**", "phrase", "**42**"),
        ("**The answer is 42.**", "phrase", "42"),
        ("**Answer:** 42", "phrase", "42"),
        ("Answer: Paris", "phrase", "Paris"),
        ("The answer is 3.5. I am sure.", "phrase", "3.5"),
        ("The answer is 1. No, the answer is 2", "phrase", "2"),
        ("The answer is", "phrase", None),
        ("I would answer", "phrase", None),
    ],
)
def test_each_answer_format(text: str, name: AnswerFormat, answer: str | None) -> None:
    assert find_answer(text, [name]) == answer


def test_the_first_format_that_finds_an_answer_decides() -> None:
    text = r"<answer>1</answer> \boxed{2} #### 3"
    assert find_answer(text, ["tags", "boxed"]) == "1"
    assert find_answer(text, ["boxed", "tags"]) == "2"
    assert find_answer(text, ["phrase", "hashes", "boxed"]) == "3"


@pytest.mark.parametrize("name", ["tags", "boxed", "hashes", "phrase"])
def test_long_and_hostile_texts_are_searched_to_the_end(name: AnswerFormat) -> None:
    """A backtracking pattern would not reach the answer at the end of any of these texts."""
    marked = {
        "tags": "<answer>7</answer>",
        "boxed": r"\boxed{7}",
        "hashes": "\n#### 7",
        "phrase": "\nThe answer is 7.",
    }
    for piece in ("<answer>", r"\boxed{", "####", "answer is ", "<think>", "{", "answer " * 3):
        expected = None if piece == "<think>" else "7"  # a thought that never ends has no answer
        assert find_answer(piece * 20_000 + marked[name], [name]) == expected, piece
