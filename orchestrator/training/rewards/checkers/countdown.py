"""Countdown: does the expression use exactly the given numbers and reach the target?

The rule of reasoning_gym's own scorer, which evaluates the model's text as Python through sympy (about 1
ms, and whatever that text says). Here only + - * / and parentheses on whole numbers exist, and
arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.training.rewards.checkers import CHECKERS
from orchestrator.training.rewards.checkers._arithmetic import evaluate


class Countdown:
    """`reference["entry"]["metadata"]` has `numbers` and `target`.

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
        """The same value of the same numbers: `1+2+4` and `2+1+4` are one answer, `7` is another."""
        first, second = evaluate(one), evaluate(other)
        if first is None or second is None:
            return False
        return first[0] == second[0] and sorted(first[1]) == sorted(second[1])


countdown = Countdown()
CHECKERS.register("countdown")(countdown)
