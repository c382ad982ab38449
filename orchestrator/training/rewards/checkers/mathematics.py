"""Answers of files: texts, numbers and LaTeX, by value where they have one.

In this order: the same text (case and white space aside); the same number; the same mathematics by
math-verify, for references that are mathematics at all (words are not: as products of letters, "Paris" and
"pairs" are equal).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import math_verify
import sympy

_NUMBER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?")
_MATHEMATICAL = re.compile(r"\d|\\|^[A-Za-z]$")

# It warns that its own timeouts are off. They rely on SIGALRM; here the whole process is killed at a timeout.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def judge_mathematics(answer: str, reference: Mapping[str, Any]) -> bool:
    """`reference["answer"]` is a text or a number; of GSM8K's texts what follows `####`.

    Where the reference is one number the answer must be one number, too: neither a list that holds it nor a
    sum that makes it.
    """
    expected = str(reference["answer"]).rsplit("####", maxsplit=1)[-1].strip()
    if _normalised(answer) == _normalised(expected):
        return True
    wanted, got = _number(expected), _number(answer)
    if wanted is not None and got is not None:
        return wanted == got
    if not _MATHEMATICAL.search(expected):
        return False
    parsed = _parse(answer)
    if wanted is not None and not (parsed and isinstance(parsed[0], sympy.Number)):
        return False
    return bool(math_verify.verify(_parse(expected), parsed, timeout_seconds=0))


def _parse(text: str) -> list[Any]:
    """What math-verify reads in `text`, taken as one formula; empty if nothing."""
    return math_verify.parse(f"${text.replace('$', '')}$", parsing_timeout=0)


def _number(text: str) -> Decimal | None:
    text = text.strip().removeprefix("$").removesuffix(".")
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
