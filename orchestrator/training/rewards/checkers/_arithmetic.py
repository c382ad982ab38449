"""Evaluates + - * / and parentheses on integers exactly and without `eval`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

MAX_LENGTH = 1000
_CHARACTERS = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """Evaluate an expression. Returns its value and the numbers in it, in order; None for any other text.

    >>> evaluate("6/(1-3/4)")
    (Fraction(24, 1), [6, 1, 3, 4])
    >>> evaluate("2**9"), evaluate("1/0"), evaluate("__import__('os')")
    (None, None, None)
    """
    if len(text) > MAX_LENGTH or not _CHARACTERS.fullmatch(text):
        return None
    try:
        numbers: list[int] = []
        value = _value(ast.parse(text.strip(), mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None  # CPython's parser raises MemoryError if the nesting is too deep
    return value, numbers


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            numbers.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, numbers)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, numbers), _value(right, numbers))
        case _:
            raise ValueError(f"{type(node).__name__} is not arithmetic")
