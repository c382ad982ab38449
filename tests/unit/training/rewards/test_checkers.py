from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.training.reasoning_gym_import import DATASETS, get_score_answer_fn
from orchestrator.training.rewards.checkers import CHECKERS, checker_of, votes
from orchestrator.training.rewards.checkers import countdown as countdown_module
from orchestrator.training.rewards.checkers.mathematics import mathematics
from orchestrator.training.rewards.checkers.reasoning_gym import (
    INTERPRETS_ITS_REFERENCE,
    REPLACED,
    check_reasoning_gym,
)


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
    assert countdown_module.countdown(answer, countdown([3, 6, 2], 7)) is right


def test_countdown_is_exact() -> None:
    assert countdown_module.countdown("6/(1-3/4)", countdown([1, 3, 4, 6], 24))
    assert not countdown_module.countdown("1/3*3", countdown([1, 3, 3], 2))


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
    assert countdown_module.countdown(answer, reference) == (upstream(answer, reference["entry"]) == 1.0)


WAYS_TO_RUN = {
    "a call": "open({0!r}, 'w')",
    "a list": "[open({0!r}, 'w')]",
    "deep nesting, where ast.parse gives up before eval does": "-" * 2965 + "open({0!r}, 'w')",
    "as a formula": "sin(open({0!r}, 'w'))",
    "through a class": "().__class__.__base__.__subclasses__() or open({0!r}, 'w')",
}


@pytest.mark.parametrize("attack", WAYS_TO_RUN.values(), ids=WAYS_TO_RUN)
@pytest.mark.parametrize("name", [*REPLACED, "countdown"])
def test_the_text_of_a_model_is_never_executed(name: str, attack: str, tmp_path: Path) -> None:
    """The upstream scorers of these datasets evaluate the answer as Python."""
    witness = tmp_path / "ran"
    metadata = {"integrand": "x", "variable": "x", "valid_answers": ["Q"], "numbers": [1, 2], "target": 3}
    reference = {"dataset": name, "entry": {"question": "?", "answer": "1", "metadata": metadata}}
    for depth in (0, 3):
        answer = "-" * depth + attack.format(str(witness))
        assert not checker_of(reference)(answer, reference)
    assert not witness.exists()


def test_no_installed_scorer_interprets_text_unless_it_is_listed() -> None:
    """If this fails after an upgrade of reasoning_gym, review the scorer that it names."""
    interpreter = re.compile(r"\b(eval|exec|compile|parse_expr|sympify|literal_eval|S|parse_latex|loads?)\(")
    found: set[str] = set()
    for name, (dataset, _) in DATASETS.items():
        calls = interpreter.findall(inspect.getsource(dataset.score_answer))
        if set(calls) - {"loads", "load"}:
            found.add(name)
    assert found == set(REPLACED) | INTERPRETS_ITS_REFERENCE | {"countdown"}


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_checkers_agree_with_upstream(name: str) -> None:
    upstream: Any = get_score_answer_fn(name)
    dataset, config = DATASETS[name]
    entries: Any = dataset(config(seed=7, size=2))
    for index in range(2):
        entry = entries[index]
        reference = {"dataset": name, "entry": entry}
        right = entry["answer"] or entry["metadata"]["valid_answers"][0]
        for answer in (right, right + "1", right[:-1], right[::-1], f" {right}", "0", "x", ""):
            # Upstream takes the question, as an unevaluated integral, for its own answer.
            if "Integral" not in answer:
                assert check_reasoning_gym(answer, reference) == (upstream(answer, entry) >= 1.0), answer


def test_an_answer_that_upstream_fails_to_parse_is_wrong() -> None:
    """Upstream's own scorer raises ValueError here, which would allow a model to stop a run."""
    entry = {"question": "?", "answer": "2 × 3", "metadata": {"factors": [2, 3]}}
    reference = {"dataset": "prime_factorization", "entry": entry}
    assert check_reasoning_gym("2 × 3", reference)
    assert not check_reasoning_gym("two times three", reference)


def test_an_entry_that_upstream_cannot_score_at_all_is_an_error() -> None:
    with pytest.raises(KeyError):
        check_reasoning_gym("2 × 4", {"dataset": "prime_factorization", "entry": {}})


def test_ordinary_answers_are_scored_like_upstream() -> None:
    entry = {"question": "?", "answer": "1 2 3", "metadata": {}}
    assert check_reasoning_gym("1 2 3", {"dataset": "spiral_matrix", "entry": entry})
    assert not check_reasoning_gym("3 2 1", {"dataset": "spiral_matrix", "entry": entry})


def test_formulas_are_scored_like_upstream() -> None:
    entry = {
        "question": "?",
        "answer": "x**2/2 + C",
        "metadata": {"integrand": "x", "variable": "x"},
    }
    reference = {"dataset": "simple_integration", "entry": entry}
    assert check_reasoning_gym("x**2/2 + C", reference)
    assert not check_reasoning_gym("x**2 + C", reference)


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
    assert mathematics(answer, {"answer": expected}) is right


NUMBERS = [
    ("0.00001", ["1e-05", "1E-5", "0.000010", r"10^{-5}", r"1 \times 10^{-5}"]),
    ("1e16", ["10000000000000000", "10,000,000,000,000,000", "1e+16", "10^16"]),
    (r"6.02\times 10^{23}", ["6.02e23", "6.02 * 10**23", "6.02×10²³", "6.02·10^23"]),
    ("3 1/2", ["3.5", "7/2", "3½", r"3\frac{1}{2}", r"3 \frac12", "3 and 1/2", r"\frac{7}{2}"]),
    ("1000", ["1 000", r"1\,000", "1{,}000", "1,000.00", "1\u202f000", "1\u00a0000", "1e3", "1 thousand"]),
    ("5", ["**5**", "__5__", "`5`", "$5$", r"\(5\)", "$$5$$", "**$5$**", "5.", "+5", "５", r"\text{5}"]),
    ("-5", ["\u22125", "\uff0d5", "\u20135", "- 5"]),
    ("18", ["18 dollars", "$18", r"\$18", "18 cm", "18 apples", "18 square meters", r"18\text{ cm}"]),
    ("18 cm", ["18", "18 centimeters", "18cm"]),
    ("50%", ["0.5", "50 percent", "50", r"50\%", "1/2"]),
    ("90^\\circ", ["90", "90°", "90 degrees"]),
    ("2000000", ["2 million", "2 million dollars", "2,000,000"]),
    ("1/3", [r"\frac13", "0.333333"]),
]
DIFFERENT = [
    ("5", ["\u22125", "3+2", "4 or 5", "5 or 4", "5 x", "5x", "5 and 6", "5 thousand", "10^5", "5^2"]),
    ("18 cm", ["18 m", "18 inches", "19 cm", "18 cm^2"]),
    ("3 1/2", ["3 1/3", "31/2", "3", "1/2"]),
    ("1000", ["1,00", "1,000,00", "1.000", "1, 2, 000", "1 0"]),
    ("100", ["10²³", "10", "1e200000000", "10^999999999"]),
    ("1/3", ["0.33", "0.3"]),
    (r"\pi", ["3.14159"]),
    ("(1,2)", ["(2,1)", "1,2,3"]),
    (r"\frac{1}{2}", [r"\frac{1}{2},\frac{1}{3}", "1/3"]),
    ("50", ["50%"]),
]


@pytest.mark.parametrize(
    ("expected", "answer"), [(one, other) for one, others in NUMBERS for other in (one, *others)]
)
def test_the_same_number_however_it_is_written(expected: str, answer: str) -> None:
    assert mathematics(answer, {"answer": expected})


@pytest.mark.parametrize(
    ("expected", "answer"), [(one, other) for one, others in DIFFERENT for other in others]
)
def test_different_numbers_and_other_texts_are_wrong(expected: str, answer: str) -> None:
    assert not mathematics(answer, {"answer": expected})


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("Paris", "**Paris.**"),
        (r"\emptyset", r"\varnothing"),
        ("B", "(B)"),
        ("B", "b)"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (["65", "sixty-five"], "Sixty-Five"),
        (["65"], "65.0"),
    ],
)
def test_the_same_text_or_value(expected: Any, answer: str) -> None:
    assert mathematics(answer, {"answer": expected})


@pytest.mark.parametrize("expected", ["", "  ", float("nan"), [], [""], "#### ", "**"])
@pytest.mark.parametrize("answer", ["", "nan", " ", "0"])
def test_nothing_equals_an_empty_reference(expected: Any, answer: str) -> None:
    assert not mathematics(answer, {"answer": expected})


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["7", r"\frac{1}{2}", "Paris", "x^2+1"]))
def test_no_answer_raises_an_error(answer: str, expected: str) -> None:
    assert mathematics(answer, {"answer": expected}) in (True, False)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=30))
def test_every_text_equals_itself(text: str) -> None:
    assert mathematics(text, {"answer": text})


def test_votes_by_value_not_by_spelling() -> None:
    four = countdown([1, 2, 4], 7)
    assert votes(["1+2+4", "2+1+4", "9", "9"], four) == ["1+2+4", "1+2+4", "9", "9"]
    assert votes(["12", "12.0", "24/2", "7", "7"], {"answer": "5"}) == ["12", "12", "12", "7", "7"]
    assert votes(["The  sun", "", "the sun", "**The Sun**"], {"answer": "moon"}) == [
        "The sun",
        "",
        "The sun",
        "The sun",
    ]
    chain = {"dataset": "chain_sum", "entry": {"answer": "12", "metadata": {}}}
    assert votes(["12", "12.0", "13"], chain) == ["12", "12", "13"]
    assert votes(["1+2", "3"], countdown([1, 2], 3)) == ["1+2", "3"]


def test_a_reference_can_name_its_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHECKERS, "_components", {})
    CHECKERS.register("longer")(lambda answer, reference: len(answer) > reference["than"])
    reference = {"checker": "longer", "than": 2}
    assert checker_of(reference)("abc", reference)
    assert not checker_of(reference)("ab", reference)
    with pytest.raises(ConfigError, match="nosuch"):
        checker_of({"checker": "nosuch"})
    CHECKERS.register("seven")(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a function"):
        checker_of({"checker": "seven"})


def test_a_reference_without_a_checker_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no checker for a reference with \['colour'\]"):
        checker_of({"colour": "red"})
