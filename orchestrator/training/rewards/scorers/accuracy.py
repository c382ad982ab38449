"""Is the answer right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from orchestrator.training.rewards.checkers import checker_of
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import SCORERS


class Accuracy:
    """1.0 if the answer is fully right by the checker of the prompt's reference, else 0.0.

    A response without an answer is wrong. So is one to which the task's own scorer gives partial credit: a
    model that is paid for trying learns to try.
    """

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Import the checkers that these references need."""
        for reference in references:
            with suppress(ValueError):  # no checker: scoring says so, for each rollout
                checker_of(reference)

    def __call__(self, completion: Completion, /) -> float:
        """Raises ValueError if no checker reads the reference."""
        answer = completion.answer
        if answer is None:
            return 0.0
        reference = completion.prompt.reference
        return float(checker_of(reference)(answer, reference))


accuracy = Accuracy()
SCORERS.register("accuracy")(accuracy)
