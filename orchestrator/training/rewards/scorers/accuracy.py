"""Is the answer right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from orchestrator.training.rewards.checkers import judge_of
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import SCORERS


class Accuracy:
    """1.0 if the text in the last `<answer>...</answer>` is fully right by the judge of the prompt's
    reference, else 0.0.

    No answer is a wrong answer. Partial credit of a task's own scorer counts as wrong: a model that is paid
    for trying learns to try.
    """

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Import the judges that these references need."""
        for reference in references:
            with suppress(ValueError):  # no judge: scoring says so, rollout by rollout
                judge_of(reference)

    def __call__(self, completion: Completion, /) -> float:
        """Raises ValueError if the reference is of no kind that has a judge."""
        answer = last_answer(completion.text)
        if answer is None:
            return 0.0
        reference = completion.prompt.reference
        return float(judge_of(reference)(answer, reference))


def last_answer(text: str) -> str | None:
    """What stands in the last complete `<answer>...</answer>`, without surrounding white space; None if there
    is none.

    >>> last_answer("<answer>3</answer> wait, <answer> 4 </answer>")
    '4'
    """
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start == -1 else text[start + len("<answer>") : end].strip()


accuracy = Accuracy()
SCORERS.register("accuracy")(accuracy)
