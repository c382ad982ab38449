"""reasoning_gym's own scorers: fully right is a score of 1.

Some of them evaluate the answer as Python. A model's text must not become code, so for those datasets an
answer that is more than a literal or a formula is wrong before it gets there.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.training.reasoning_gym_import import get_score_answer_fn

_EVALUATED = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Their scorers call `eval` on the answer, and compare it as text where that fails."""
_PARSED_BY_SYMPY = frozenset(
    {"intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Their scorers call sympy's `parse_expr`, which evaluates too."""
_LITERAL = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.UnaryOp, ast.unaryop, ast.Load)
_FORMULA = (*_LITERAL, ast.BinOp, ast.operator, ast.Name, ast.Call)
_FUNCTIONS = frozenset({"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "Abs"})


def judge_generated(answer: str, reference: Mapping[str, Any]) -> bool:
    """`reference` has the `dataset` and its `entry`."""
    name = reference["dataset"]
    if name in _EVALUATED and not _is_literal(answer):
        return False
    if name in _PARSED_BY_SYMPY and not _is_formula(answer):
        return False
    return _scorer(name)(answer, reference["entry"]) >= 1.0


@functools.cache
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], float]:
    scorer: Any = get_score_answer_fn(name)  # its annotation says Callable[[], float]
    return scorer


def _is_literal(answer: str) -> bool:
    """True for text that is no Python at all: `eval` then raises, and nothing runs."""
    try:
        tree = ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return all(isinstance(node, _LITERAL) for node in ast.walk(tree))


def _is_formula(answer: str) -> bool:
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        isinstance(node, _FORMULA)
        and (not isinstance(node, ast.Call) or _calls_a_function(node))
        and (not isinstance(node, ast.Constant) or isinstance(node.value, int | float))
        for node in ast.walk(tree)
    )


def _calls_a_function(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in _FUNCTIONS and not call.keywords
