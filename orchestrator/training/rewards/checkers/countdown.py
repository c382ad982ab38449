"""Countdown: does the expression use exactly the given numbers and reach the target?

The rule of reasoning_gym's own scorer, which evaluates the model's text as Python through sympy (about 1 ms,
and whatever that text says); here only + - * / and parentheses on integers exist, and arithmetic is exact.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

_ARITHMETIC = re.compile(r"[0-9+\-*/() ]+")
_MAX_LENGTH = 1000
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def judge_countdown(answer: str, reference: Mapping[str, Any]) -> bool:
    """`reference["entry"]["metadata"]` has `numbers` and `target`.

    >>> judge_countdown("+3+6-2", {"entry": {"metadata": {"numbers": [3, 6, 2], "target": 7}}})
    True
    """
    metadata = reference["entry"]["metadata"]
    if len(answer) > _MAX_LENGTH or not _ARITHMETIC.fullmatch(answer):
        return False
    try:
        used: list[int] = []
        value = _evaluate(ast.parse(answer.strip(), mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False  # not arithmetic; MemoryError is what CPython's parser raises for too deep a nesting
    return value == metadata["target"] and sorted(used) == sorted(metadata["numbers"])


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, used)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, used)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, used), _evaluate(right, used))
        case _:
            raise ValueError(f"no arithmetic: {type(node).__name__}")
