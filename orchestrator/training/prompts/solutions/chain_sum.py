"""Writes sums from left to right: the solutions that a cold start on `chain_sum` imitates.

    5 - 3 + 6=    <think>5-3=2 2+6=8</think><answer>8</answer>

Every partial sum is written out, so each step of a trace adds two numbers. The traces contain neither random
choices nor self-checks: reinforcement learning can only make the sums more reliable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.solutions import SOLUTIONS

_EXPRESSION = re.compile(r"-?\d+(?: [+-] -?\d+)*")


@SOLUTIONS.register("chain_sum")
def chain_sum(row: Mapping[str, Any], rng: random.Random) -> str:
    """Write the trace for the chain_sum entry in `row`, whose `expression`
    consists of integers, plus and minus.

    Raises ConfigError if the row has no such expression.
    """
    expression = row.get("expression")
    if not isinstance(expression, str) or not _EXPRESSION.fullmatch(expression):
        raise ConfigError(
            "task.solutions",
            "chain_sum",
            "a task whose rows have an `expression` of integers, plus and minus, such as chain_sum",
            f"this row has {', '.join(map(str, row))}",
        )
    first, *rest = expression.split(" ")
    total, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        partial = total + int(number) if sign == "+" else total - int(number)
        steps.append(f"{total}{sign}{number}={partial}")
        total = partial
    return f"<think>{' '.join(steps) or total}</think><answer>{total}</answer>"
