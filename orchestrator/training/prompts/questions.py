"""The questions that sources yield, before the split into training and held-out questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a source.

    `text` is the prompt: the task's template with the fields of the row. Questions with the same `content`
    count as the same question: all orders of the numbers of a countdown puzzle share it, though their texts
    differ. Solution writers read `fields`; scorers may read `columns`.
    """

    text: str
    content: str
    fields: Mapping[str, Any]
    reference: Mapping[str, Any]
    solution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuestionStream:
    """The questions of a source in order. `heldout` is None if held-out questions
    are also taken from `questions`.

    An `endless` stream (a generator) eventually repeats itself; a finite one ends. Error messages name the
    source by `key` (a config key or a path) and `origin` (a phrase).
    """

    questions: Iterator[Question | None]
    """None is a failed attempt of the source to make a question; more may follow."""
    heldout: Iterator[Question | None] | None
    endless: bool
    key: str
    origin: str


def normalised(text: str) -> str:
    """Convert the text to lower case with single spaces. Questions that only differ in
    case and white space are the same.
    """
    return " ".join(text.casefold().split())
