"""Answers from files: words, numbers and LaTeX, compared by value where they have one.

In this order: the same text, apart from case, white space, Markdown and Unicode forms; the same number, with
its unit; the same mathematics by math-verify, for references that are mathematics at all. (Words are not: as
products of letters, "Paris" and "pairs" are equal.)
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
"""A longer answer is compared as text only."""
_MATHEMATICAL = re.compile(r"\d|\\|^[A-Za-z]$")
_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])\)")
_SAME_SYMBOLS = ((r"\varnothing", r"\emptyset"),)

# It warns that its own timeouts are off. They rely on SIGALRM; here the whole process is stopped instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Mathematics:
    """`reference["answer"]` is a text, a number, or a list of accepted ones; of GSM8K's worked solutions,
    what follows `####` is the answer.

    Where the reference is one number the answer must be one number, too: neither a list that contains it nor
    a calculation that results in it. Nothing equals an empty reference or NaN."""

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
    """What math-verify reads in `text`, taken as one LaTeX formula; empty if nothing.

    Its other reader, of plain expressions, ends in `eval` and is left out.
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
