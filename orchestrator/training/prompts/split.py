"""Splits questions into training and held-out ones that share neither text nor content.

The held-out questions are the first ones of the stream with distinct contents. The training questions follow
and share no content with them. The held-out set therefore does not depend on `train_size`: runs with more
training data are evaluated on the same questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.errors import ConfigError, DatasetError
from orchestrator.training.prompts.questions import Question, QuestionStream, normalised


@dataclass(frozen=True, slots=True)
class Split:
    """Distinct questions for training and for evaluation."""

    train: tuple[Question, ...]
    heldout: tuple[Question, ...]


def split_questions(stream: QuestionStream, train_size: int, heldout_size: int) -> Split:
    """Take the first `heldout_size` questions of distinct content, then `train_size`
    distinct questions of other content.

    Raises DatasetError if the source has no questions, and ConfigError with the number of distinct
    questions if there are too few.
    """
    questions = _until_exhausted(stream.questions) if stream.endless else _made(stream.questions)
    taken = _Taken()
    heldout_from = questions if stream.heldout is None else _made(stream.heldout)
    heldout = list(itertools.islice(filter(taken.is_new, heldout_from), heldout_size))
    train: dict[str, Question] = {}
    if len(heldout) == heldout_size:
        for question in questions:
            if not taken.shares(question):
                train.setdefault(normalised(question.text), question)
            if len(train) == train_size:
                return Split(tuple(train.values()), tuple(heldout))
    if not heldout:
        raise DatasetError(stream.key, stream.origin, "at least one question", "it has none")
    found = f"{len(heldout)} held-out prompts" + (f" and {len(train)} for training" if train else "")
    raise ConfigError(
        "task.train_size, task.heldout_size",
        f"{train_size}, {heldout_size}",
        f"at most the distinct prompts of {stream.origin}: {found}",
        "repeated prompts and reorderings of held-out ones are not counted",
    )


class _Taken:
    """Texts and contents of the held-out questions."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._contents: set[str] = set()

    def shares(self, question: Question) -> bool:
        return question.content in self._contents or normalised(question.text) in self._texts

    def is_new(self, question: Question) -> bool:
        """Record the question. Returns True if its text and its content are new."""
        if self.shares(question):
            return False
        self._contents.add(question.content)
        self._texts.add(normalised(question.text))
        return True


def _made(questions: Iterator[Question | None]) -> Iterator[Question]:
    return (question for question in questions if question is not None)


def _until_exhausted(questions: Iterator[Question | None]) -> Iterator[Question]:
    """Yield the questions of a generator until it has repeated itself for so long
    that another new one is unlikely.

    If one of n + 1 equally likely questions is still unseen, 10 n draws miss it with probability e^-10.
    """
    seen: set[str] = set()
    last_new = 0
    for draw, question in enumerate(questions):
        if question is not None and (text := normalised(question.text)) not in seen:
            seen.add(text)
            last_new = draw
            yield question
        elif draw - last_new > 10 * len(seen) + 1000:
            return
