from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.training.reasoning_gym_import import get_score_answer_fn
from orchestrator.training.rewards.checkers.countdown import judge_countdown
from orchestrator.training.rewards.checkers.generated import judge_generated
from orchestrator.training.rewards.checkers.mathematics import judge_mathematics


def countdown(numbers: list[int], target: int) -> dict[str, Any]:
    metadata = {"numbers": numbers, "target": target}
    return {"dataset": "countdown", "entry": {"question": "?", "answer": "", "metadata": metadata}}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("3+6-2", True),
        (" +3 + 6 - 2 ", True),
        ("6-2+3", True),
        ("(6)-(2-3)", True),
        ("3+6-2=7", False),  # the expression alone was asked for
        ("7", False),
        ("3+6-2+0", False),
        ("3+6", False),
        ("3+6-2-2+2", False),
        ("3+6+2", False),
        ("3 6 2", False),
        ("36-29", False),
        ("3.0+6-2", False),
        ("3+6-2;1", False),
        ("3**6-2", False),
        ("3//6+2", False),
        ("__import__('os')", False),
        ("3+6-2/0", False),
        ("", False),
        ("(" * 400 + "7" + ")" * 400, False),
        ("-" * 900 + "7", False),
        ("3+6-" + "2" * 5000, False),
    ],
)
def test_countdown(answer: str, right: bool) -> None:
    assert judge_countdown(answer, countdown([3, 6, 2], 7)) is right


def test_countdown_is_exact() -> None:
    assert judge_countdown("6/(1-3/4)", countdown([1, 3, 4, 6], 24))
    assert not judge_countdown("1/3*3", countdown([1, 3, 3], 2))


expressions = st.recursive(
    st.integers(1, 9).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(expressions, st.integers(-20, 40))
def test_countdown_agrees_with_the_upstream_scorer(answer: str, target: int) -> None:
    reference = countdown([int(digit) for digit in answer if digit.isdigit()], target)
    upstream: Any = get_score_answer_fn("countdown")
    assert judge_countdown(answer, reference) == (upstream(answer, reference["entry"]) == 1.0)


def test_a_models_text_never_becomes_code(tmp_path: Any) -> None:
    """The upstream scorers of these datasets evaluate the answer as Python."""
    witness = tmp_path / "ran"
    attack = f"open({str(witness)!r}, 'w')"
    entry = {"question": "?", "answer": "1 2", "metadata": {"n": 1, "integrand": "x", "variable": "x"}}
    for name in ("spiral_matrix", "binary_matrix", "n_queens", "string_insertion", "puzzle24"):
        assert not judge_generated(attack, {"dataset": name, "entry": entry})
    for name in ("simple_integration", "intermediate_integration", "polynomial_multiplication"):
        assert not judge_generated(attack, {"dataset": name, "entry": entry})
    assert not witness.exists()


def test_an_answer_cannot_name_the_variables_of_its_scorer() -> None:
    """`eval` runs where `entry` is in scope: this text would be the right answer to every question."""
    entry = {"question": "?", "answer": "ABBA", "metadata": {}}
    assert not judge_generated("entry['answer']", {"dataset": "string_insertion", "entry": entry})


def test_text_that_is_no_code_is_still_read_as_upstream_does() -> None:
    entry = {"question": "?", "answer": "1 2 3", "metadata": {}}
    assert judge_generated("1 2 3", {"dataset": "spiral_matrix", "entry": entry})
    assert not judge_generated("3 2 1", {"dataset": "spiral_matrix", "entry": entry})


def test_formulas_are_still_read_as_upstream_does() -> None:
    entry = {
        "question": "?",
        "answer": "x**2/2 + C",
        "metadata": {"integrand": "x", "variable": "x"},
    }
    reference = {"dataset": "simple_integration", "entry": entry}
    assert judge_generated("x**2/2 + C", reference)
    assert not judge_generated("x**2 + C", reference)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("42", "42", True),
        ("42", " 42. ", True),
        ("42", "$42", True),
        ("42", r"\boxed{42}", True),
        ("42", r"\frac{84}{2}", True),
        ("1,234", "1234", True),
        (10, "10.0", True),
        (2.5, "5/2", True),
        ("-5", "-5", True),
        ("-5", "5", False),
        (r"\frac{1}{2}", "0.5", True),
        ("x^2+1", "1+x^2", True),
        (r"\sqrt{2}", "2^{1/2}", True),
        ("She buys 6 more. #### 42", "42", True),
        ("Paris", " paris", True),
        ("Paris", "pairs", False),  # as products of letters they are equal
        (True, "true", True),
        ("42", "41 42", False),  # a list that holds the answer
        ("42", "41 or 42", False),
        ("42", "$41$ or $42$", False),
        ("42", r"\boxed{41} \boxed{42}", False),
        ("42", "40+2", False),  # the question is no answer
        (r"\frac{1}{2}", r"\frac13 or \frac12", False),
        ("42", "", False),
        ("42", r"$\frac{", False),
    ],
)
def test_mathematics(expected: Any, answer: str, right: bool) -> None:
    assert judge_mathematics(answer, {"answer": expected}) is right
