"""Scores whether the answer is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from orchestrator.training.rewards.checkers import checker_of
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import SCORERS


class Accuracy:
    """1.0 if the checker of the prompt's reference finds the answer fully correct, else 0.0.

    A response without an answer gets 0.0, and so does a partly correct answer: a model that is rewarded for
    attempts learns to produce attempts.
    """

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Import the checkers that these references need."""
        for reference in references:
            with suppress(ValueError):  # a missing checker is reported when a rollout is scored
                checker_of(reference)

    def __call__(self, completion: Completion, /) -> float:
        """Raises ValueError if no checker accepts the reference."""
        answer = completion.answer
        if answer is None:
            return 0.0
        reference = completion.prompt.reference
        return float(checker_of(reference)(answer, reference))


accuracy = Accuracy()
SCORERS.register("accuracy")(accuracy)
