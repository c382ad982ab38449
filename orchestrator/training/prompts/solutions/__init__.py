"""Writers of worked solutions for a cold start, with one file for each. `task.solutions` selects one.

    @SOLUTIONS.register("guess_and_check")
    def guess_and_check(row: Mapping[str, Any], rng: random.Random) -> str: ...

`row` holds the columns of a file's row; for a reasoning_gym entry, `question`, `answer` and the fields of its
`metadata` (`numbers`, `target`, `expression`, ...). Third parties register writers under the entry point
group `orchestrator.solutions`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.training.registry import NoFacts, Registry


class SolutionWriter(Protocol):
    """Writes the worked solution of a question, including the tags of the answer format."""

    def __call__(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """Write the solution of the question in `row`. All randomness must come from `rng`, which is seeded
        with the prompt id and the epoch, so that a solution is the same in every run and differs between
        epochs. Raises ConfigError for a question that the writer cannot solve.
        """
        ...


SOLUTIONS: Registry[SolutionWriter, NoFacts] = Registry(
    "solutions", "orchestrator.training.prompts.solutions", NoFacts, key="task.solutions"
)
