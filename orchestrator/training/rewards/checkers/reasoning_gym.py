"""Checks answers to reasoning_gym's generated questions with the scorer of each
dataset: a score of 1 is correct.

Some of those scorers interpret the answer as Python. The text of a model must never run as code, so
the scorers in `REPLACED` are not called; the functions here accept the same answers without
evaluating them. A test reads the source of every installed scorer and fails if one that interprets
text is in neither of the tables below.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from orchestrator.training.reasoning_gym_import import get_score_answer_fn
from orchestrator.training.rewards.checkers import CHECKERS
from orchestrator.training.rewards.checkers._arithmetic import evaluate
from orchestrator.training.rewards.checkers._formulas import NotAFormulaError, formula

MAX_LENGTH = 20_000
"""Longer answers are wrong: no question has such an answer, and upstream's parsers are not made for it."""

Entry = Mapping[str, Any]


@CHECKERS.register("reasoning_gym")
def check_reasoning_gym(answer: str, reference: Mapping[str, Any]) -> bool:
    """Expects `dataset` and `entry` in `reference`. An answer that upstream's scorer fails to parse is wrong;
    the error is only raised if the scorer cannot score the correct answer either.
    """
    name, entry = reference["dataset"], reference["entry"]
    if len(answer) > MAX_LENGTH:
        return False
    if name in REPLACED:
        return REPLACED[name](answer, entry)
    score = _upstream(name)
    try:
        return score(answer, entry) >= 1.0
    except Exception:  # noqa: BLE001 - upstream may raise anything on a text that it cannot parse
        score(entry["answer"], entry)
        return False


@functools.cache
def _upstream(name: str) -> Callable[[str | None, Entry], float]:
    scorer: Any = get_score_answer_fn(name)  # its annotation says Callable[[], float]
    return scorer


def _same_text(answer: str, entry: Entry) -> bool:
    return answer == entry["answer"]


def _same_stripped_text(answer: str, entry: Entry) -> bool:
    return answer.strip() == entry["answer"].strip()


def _valid_board(answer: str, entry: Entry) -> bool:
    return answer in entry["metadata"]["valid_answers"]


def _makes_24(answer: str, entry: Entry) -> bool:
    """Stricter than upstream, which accepts any four numbers."""
    found = evaluate(answer)
    return found is not None and found[0] == 24 and sorted(found[1]) == sorted(entry["metadata"]["numbers"])


def _antiderivative(answer: str, entry: Entry) -> bool:
    metadata = entry["metadata"]
    integrand = formula(metadata["integrand"])
    try:
        derivative = sympy.diff(formula(answer), sympy.Symbol(metadata["variable"]))
    except NotAFormulaError:
        return False
    return bool(sympy.simplify(derivative - integrand) == 0)


def _same_polynomial(answer: str, entry: Entry) -> bool:
    expected = formula(entry["answer"])
    try:
        return bool(formula(answer) == expected)
    except NotAFormulaError:
        return False


REPLACED: Mapping[str, Callable[[str, Entry], bool]] = {
    "binary_matrix": _same_text,
    "intermediate_integration": _antiderivative,
    "n_queens": _valid_board,
    "polynomial_multiplication": _same_polynomial,
    "puzzle24": _makes_24,
    "simple_integration": _antiderivative,
    "spiral_matrix": _same_stripped_text,
    "string_insertion": _same_text,
}
"""Replacements for scorers that call `eval` or sympy's `parse_expr` on the answer. (`countdown`
also has its own checker.) The originals also read Python literals to give partial credit; here, a
partly correct answer is wrong.
"""

INTERPRETS_ITS_REFERENCE = frozenset({"number_sorting"})
"""Datasets whose scorers call `eval` on the reference answer, which the generator wrote, and
never on the answer of the model.
"""
