"""What every source yields: questions, before they are split into training and held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a source.

    `text` is what the model will read: the task's template with the row's fields in it. Questions with the
    same `content` count as the same question: all orders of the numbers of a countdown puzzle share it,
    though their texts differ. Writers of worked solutions read `fields`; scorers may read `columns`.
    """

    text: str
    content: str
    fields: Mapping[str, Any]
    reference: Mapping[str, Any]
    solution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuestionStream:
    """The questions of a source in the order of their use. `heldout` is None if held-out questions come from
    `questions` too.

    An `endless` stream (a generator) repeats itself sooner or later; a finite one ends. Error messages name
    the source by `key` (a config key or a path) and `origin` (a phrase).
    """

    questions: Iterator[Question | None]
    """None stands for a failed attempt of the source to make a question; more may follow."""
    heldout: Iterator[Question | None] | None
    endless: bool
    key: str
    origin: str


def normalised(text: str) -> str:
    """The text in lower case with single spaces: questions that differ only in
    case and white space are the same.
    """
    return " ".join(text.casefold().split())
