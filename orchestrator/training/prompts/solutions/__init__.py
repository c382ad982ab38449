"""Writers of worked solutions for a cold start: one file each, chosen by `task.solutions`.

    @SOLUTIONS.register("guess_and_check")
    def guess_and_check(row: Mapping[str, Any], rng: random.Random) -> str: ...

`row` holds the columns of a file's row; for a reasoning_gym entry `question`, `answer` and the fields of its
`metadata` (`numbers`, `target`, `expression`, ...). A third party registers a writer under an entry point of
the group `orchestrator.solutions`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.training.registry import NoFacts, Registry


class SolutionWriter(Protocol):
    """Writes a model answer to a question, including the tags of the answer format."""

    def __call__(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """The solution of the question in `row`. All randomness comes from `rng`, which is seeded by the id
        of the prompt and the epoch: the same in every run, different in every epoch. Raises ConfigError for a
        question that it can't solve.
        """
        ...


SOLUTIONS: Registry[SolutionWriter, NoFacts] = Registry(
    "solutions", "orchestrator.training.prompts.solutions", NoFacts, key="task.solutions"
)
