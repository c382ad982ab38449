"""What every source yields: questions, before they are split and put into the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a source.

    `text` is what the model will read: the task's template with the row's fields in it. `content` says which
    questions count as the same for the split: re-orderings of one countdown puzzle share it, though their
    texts differ. `fields` are what a writer of worked solutions works from.
    """

    text: str
    content: str
    fields: Mapping[str, Any]
    reference: Mapping[str, Any]
    solution: str = ""


@dataclass(frozen=True, slots=True)
class QuestionStream:
    """Questions of a source in the order in which they are to be used; `heldout` is None where both splits
    come from `questions`.

    An `endless` stream (a generator) repeats itself sooner or later, a finite one ends. `key` and `origin`
    say in errors where the questions came from: a config key or a path, and what a person calls the source.
    """

    questions: Iterator[Question | None]
    """None: the source tried and could not make a question; it may go on."""
    heldout: Iterator[Question | None] | None
    endless: bool
    key: str
    origin: str


def normalised(text: str) -> str:
    """The text without differences of case and white space: two questions that differ only in those are the
    same."""
    return " ".join(text.casefold().split())
