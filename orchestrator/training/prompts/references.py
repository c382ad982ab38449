"""Validates the reference answers in files."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from orchestrator.errors import DatasetError

Answer = str | int | float
ALLOWED = "a text, a number, or a list of accepted answers"


def accepted_answers(where: str, column: str, value: object) -> Answer | list[Answer]:
    """Return the reference answer in `value`: a text, a number, or a list of accepted answers.

    Raises DatasetError naming the row and its column for all other values, and for values that no answer can
    match or that match an empty answer: an empty list, NaN, infinity, true and false, a blank text, and a
    GSM8K solution without an answer after `####`.
    """
    if isinstance(value, list):
        if not value:
            raise DatasetError(where, f"{column}: []", ALLOWED, "an empty list accepts no answer")
        return [_single(where, column, item) for item in value]
    return _single(where, column, value)


def _single(where: str, column: str, value: Any) -> Answer:  # noqa: ANN401
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DatasetError(where, f"{column}: {value!r}", ALLOWED)
    if isinstance(value, float) and not math.isfinite(value):
        raise DatasetError(where, f"{column}: {value}", ALLOWED, "no answer equals it")
    if isinstance(value, str) and not _is_visible(value.rpartition("####")[2]):
        raise DatasetError(where, f"{column}: {_excerpt(value)}", ALLOWED, "the answer is empty")
    return value


def _is_visible(text: str) -> bool:
    """Whether the text contains more than white space, zero-width characters and byte order marks."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else "..." + text[-57:])
