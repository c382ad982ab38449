"""Countdown: checks that an expression uses exactly the given numbers and reaches the target.

The rule is the same as in reasoning_gym's own scorer, which evaluates the text of the model as Python through
sympy (in about 1 ms). This checker only accepts + - * / and parentheses on integers, and computes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.training.rewards.checkers import CHECKERS
from orchestrator.training.rewards.checkers._arithmetic import evaluate


class Countdown:
    """Expects `numbers` and `target` in `reference["entry"]["metadata"]`.

    >>> reference = {"entry": {"metadata": {"numbers": [3, 6, 2], "target": 7}}}
    >>> countdown("+3+6-2", reference), countdown("7", reference)
    (True, False)
    """

    def __call__(self, answer: str, reference: Mapping[str, Any], /) -> bool:
        metadata = reference["entry"]["metadata"]
        found = evaluate(answer)
        if found is None:
            return False
        value, used = found
        return value == metadata["target"] and sorted(used) == sorted(metadata["numbers"])

    def equivalent(self, one: str, other: str, reference: Mapping[str, Any], /) -> bool:
        """Two answers are the same if they have the same value and use the same numbers: `1+2+4` and `2+1+4`
        are the same answer, `7` is another.
        """
        first, second = evaluate(one), evaluate(other)
        if first is None or second is None:
            return False
        return first[0] == second[0] and sorted(first[1]) == sorted(second[1])


countdown = Countdown()
CHECKERS.register("countdown")(countdown)
