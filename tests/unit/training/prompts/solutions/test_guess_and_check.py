from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.solutions import SOLUTIONS
from orchestrator.training.prompts.solutions.guess_and_check import (
    expression,
    guess_and_check,
    signs_in_order,
    value,
)

TRACE = re.compile(r"<think>(?P<thoughts>[^<]+)</think><answer>(?P<answer>[^<]+)</answer>")
ROW = {"numbers": [3, 6, 2], "target": 7}


def parts(trace: str) -> tuple[list[str], str]:
    match = TRACE.fullmatch(trace)
    assert match is not None, trace
    return match["thoughts"].split(" wait, "), match["answer"]


def solvable() -> st.SearchStrategy[dict[str, object]]:
    numbers = st.lists(st.integers(1, 9), min_size=2, max_size=4)
    return numbers.flatmap(
        lambda drawn: st.sampled_from(signs_in_order(len(drawn))).map(
            lambda signs: {"numbers": drawn, "target": value(drawn, signs)}
        )
    )


@given(solvable(), st.integers(0, 2**32))
def test_equations_and_marks_are_correct_and_guesses_are_distinct(row: dict[str, object], seed: int) -> None:
    thoughts, answer = parts(guess_and_check(row, random.Random(seed)))
    guesses = [thought.partition("=") for thought in thoughts]
    for guess, _, check in guesses:
        if check:  # some traces do not check
            result, _, compared = check.partition("/")
            assert eval(guess) == int(result)
            assert compared == f"{row['target']}{'!' if int(result) == row['target'] else '?'}"
    assert len({guess for guess, _, _ in guesses}) == len(guesses)
    assert answer == guesses[-1][0]
    assert sorted(re.findall(r"\d+", answer)) == sorted(map(str, row["numbers"]))  # type: ignore[call-overload]


def test_a_trace_that_continues_ends_at_the_target() -> None:
    traces = [parts(guess_and_check(ROW, random.Random(seed))) for seed in range(200)]
    long = [(thoughts, answer) for thoughts, answer in traces if len(thoughts) > 1]
    assert long
    assert {answer for _, answer in long} == {"3+6-2"}
    assert all(thoughts[-1] == "3+6-2=7/7!" for thoughts, _ in long)


def test_shares_of_traces_that_give_up_or_do_not_check() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(4000):
        thoughts, answer = parts(guess_and_check(ROW, random.Random(seed)))
        checked = "=" in thoughts[0]
        missed = checked and not thoughts[0].endswith("=7/7!")
        kinds["unchecked"] += not checked
        kinds["missed"] += missed
        kinds["gave up"] += missed and len(thoughts) == 1 and answer != "3+6-2"
    assert kinds["unchecked"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert kinds["gave up"] / kinds["missed"] == pytest.approx(0.6, abs=0.03)


def test_a_trace_is_a_function_of_the_row_and_the_seed() -> None:
    assert guess_and_check(ROW, random.Random(4)) == guess_and_check(ROW, random.Random(4))
    assert len({guess_and_check(ROW, random.Random(seed)) for seed in range(50)}) > 5


def test_all_signs_but_the_ones_without_a_plus() -> None:
    assert ["".join(signs) for signs in signs_in_order(3)] == [
        "+++",
        "++-",
        "+-+",
        "-++",
        "+--",
        "-+-",
        "--+",
    ]
    assert expression([3, 6, 2], ("-", "+", "-")) == "-3+6-2"


def test_other_fields_of_a_reasoning_gym_entry_are_ignored() -> None:
    row = {**ROW, "question": "Make 7 ...", "expression": "3 + 6 - 2"}
    assert guess_and_check(row, random.Random(1)) == guess_and_check(ROW, random.Random(1))


@pytest.mark.parametrize(
    "row", [{"question": "1+1"}, {"numbers": 3, "target": 7}, {"numbers": [3], "target": None}]
)
def test_another_task_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"task\.solutions: got guess_and_check"):
        guess_and_check(row, random.Random(0))


def test_a_puzzle_that_plus_and_minus_do_not_solve_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[3, 6, 2\] for 36"):
        for seed in range(50):
            guess_and_check({"numbers": [3, 6, 2], "target": 36}, random.Random(seed))


def test_the_writer_is_registered() -> None:
    assert SOLUTIONS.get("guess_and_check") is guess_and_check
