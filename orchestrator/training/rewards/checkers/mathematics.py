"""Checks answers to questions from files: words, numbers and LaTeX, compared by value if they have one.

An answer matches if it is the same text except for case, white space, Markdown and Unicode forms; or the same
number and unit; or, for mathematical references, if math-verify finds it equivalent. (Words are not passed to
math-verify: as products of letters, "Paris" and "pairs" are equal.)
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import math_verify
import sympy

from orchestrator.training.rewards.checkers import CHECKERS
from orchestrator.training.rewards.checkers._quantities import plain, quantity

MAX_LENGTH = 2000
"""Longer answers are only compared as text."""
_MATHEMATICAL = re.compile(r"\d|\\|^[A-Za-z]$")
_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])\)")
_SAME_SYMBOLS = ((r"\varnothing", r"\emptyset"),)

# math-verify warns that its timeouts are off. They rely on SIGALRM; here the
# whole process is stopped instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Mathematics:
    """`reference["answer"]` is a text, a number, or a list of accepted answers. In worked solutions of GSM8K,
    the answer is the text after `####`.

    If the reference is a number, the answer must be a single number: a list that contains it or a calculation
    that results in it is wrong. Nothing equals an empty reference or NaN.
    """

    def __call__(self, answer: str, reference: Mapping[str, Any], /) -> bool:
        expected = reference["answer"]
        accepted = expected if isinstance(expected, list | tuple) else [expected]
        return any(_matches(_text(each), answer) for each in accepted)

    def equivalent(self, one: str, other: str, reference: Mapping[str, Any], /) -> bool:
        return _matches(one, other) or _matches(other, one)


def _text(expected: object) -> str:
    if isinstance(expected, float) and math.isnan(expected):
        return ""
    return str(expected).rsplit("####", maxsplit=1)[-1].strip()


def _matches(expected: str, answer: str) -> bool:
    wanted_text = _normalised(expected)
    if not wanted_text:
        return False
    if _normalised(answer) == wanted_text:
        return True
    wanted, got = quantity(expected), quantity(answer)
    if wanted is not None and got is not None:
        return wanted.accepts(got)
    if not _MATHEMATICAL.search(expected) or max(len(answer), len(expected)) > MAX_LENGTH:
        return False
    return _same_mathematics(expected, answer, one_number=wanted is not None)


def _normalised(text: str) -> str:
    text = plain(text)
    if match := _LETTER.fullmatch(text):
        text = match[1] or match[2]
    for spelling, symbol in _SAME_SYMBOLS:
        text = text.replace(spelling, symbol)
    return " ".join(text.casefold().split())


def _same_mathematics(expected: str, answer: str, *, one_number: bool) -> bool:
    parsed = _parse(plain(answer))
    if one_number and not (parsed and isinstance(parsed[0], sympy.Number)):
        return False
    return bool(math_verify.verify(_parse(plain(expected)), parsed, timeout_seconds=0))


def _parse(text: str) -> list[Any]:
    """Parse `text` with math-verify as one LaTeX formula; empty if it finds nothing.

    math-verify's other parser, for plain expressions, calls `eval` and is not used.
    """
    for spelling, symbol in _SAME_SYMBOLS:
        text = text.replace(spelling, symbol)
    return math_verify.parse(
        f"${text.replace('$', '')}$",
        extraction_config=[math_verify.LatexExtractionConfig()],
        parsing_timeout=0,
    )


mathematics = Mathematics()
CHECKERS.register("mathematics")(mathematics)
