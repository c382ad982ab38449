"""Parses formulas in Python notation into sympy expressions, node by node.

sympy's own `parse_expr` calls `eval` on the text. This parser only knows the operators and functions below,
and limits the size of numbers and powers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import sympy

MAX_LENGTH = 1000
MAX_INTEGER = 10**50
MAX_EXPONENT = 1000
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}
_FUNCTION_NAMES = "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs"
_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    name: getattr(sympy, name) for name in _FUNCTION_NAMES.split()
}
_CONSTANTS: Mapping[str, Any] = {"pi": sympy.pi, "E": sympy.E, "I": sympy.I}


class NotAFormulaError(ValueError):
    """The text is not a formula, or its numbers are too large."""


def formula(text: str) -> Any:  # noqa: ANN401 - sympy has no types
    """Parse a formula. Raises NotAFormulaError.

    >>> formula("x**2/2 + sin(2*x)"), formula("3*x - x")
    (x**2/2 + sin(2*x), 2*x)
    """
    if len(text) > MAX_LENGTH:
        raise NotAFormulaError(f"{len(text)} characters")
    try:
        return _built(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise NotAFormulaError(str(error)) from error


def _built(node: ast.expr) -> Any:  # noqa: ANN401
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool) and value < MAX_INTEGER:
            return sympy.Integer(value)
        case ast.Constant(value=float(value)):
            return sympy.Float(value)
        case ast.Name(id=name):
            return _CONSTANTS.get(name) or sympy.Symbol(name)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _built(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_built(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_built(left), _built(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_built(left), _built(right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_built(argument))
        case _:
            raise NotAFormulaError(f"{type(node).__name__} is not part of a formula")


def _power(base: Any, exponent: Any) -> Any:  # noqa: ANN401
    if exponent.is_number and abs(exponent) > MAX_EXPONENT:
        raise NotAFormulaError("an exponent is too large")
    if base.is_Integer and exponent.is_Integer and abs(int(base)) > MAX_INTEGER:
        raise NotAFormulaError("a power is too large")
    return base**exponent
