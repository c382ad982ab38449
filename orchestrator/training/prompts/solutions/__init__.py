"""Worked solutions for a cold start: one file a writer, chosen by `task.solutions`.

    @SOLUTIONS.register("guess_and_check")
    def guess_and_check(row: Mapping[str, Any], rng: random.Random) -> str: ...

`row` is the question as its source has it, flat: the fields of a file's row, or of a reasoning_gym entry
`question`, `answer` and everything in its `metadata` (`numbers`, `target`, `expression`, ...).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.training.registry import NoFacts, Registry


class SolutionWriter(Protocol):
    """Writes what a model should say to a question, tags of the answer format included."""

    def __call__(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """The solution of the question in `row`. All chance comes from `rng`, which is seeded by the prompt's
        id and the epoch: the same in every run, new in every epoch.
        """
        ...


SOLUTIONS: Registry[SolutionWriter, NoFacts] = Registry(
    "solutions", "orchestrator.training.prompts.solutions", NoFacts, key="task.solutions"
)
