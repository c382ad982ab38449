"""Solves countdown by guessing, checking, and guessing again: the solutions that a cold start imitates.

    3,6,2=7    <think>3+6+2=11/7? wait, 3+6-2=7/7!</think><answer>3+6-2</answer>

The numbers keep their order and get signs. Each guess is evaluated, the target is written beside the result,
and a mark says whether the two are equal (`!`) or not (`?`). After a miss a trace says "wait, " and tries the
next combination of signs, in a fixed order from a random start, so that no guess is repeated. One behaviour
is left for reinforcement learning to discover: most traces give up after a first guess that misses and answer
with it anyway, and some answer without checking. The rewards then show that checking and continuing pays off.

The explicit comparison makes the cold start reliable. Without the mark, only the choice between "wait" and
the end of the thought shows that a guess was compared with the target, and after a first miss that choice is
random. With the mark, but with the target only at the beginning of the prompt, models learned with some seeds
to add but not to compare. With the target copied beside the result, only neighbouring characters
have to be compared.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.solutions import SOLUTIONS

UNCHECKED = 0.1
"""Share of traces that answer with their first guess without evaluating it."""
GIVES_UP = 0.6
"""Share of traces that answer with a first guess that misses. It is above one half, so giving up is
the most likely behaviour of the model. Traces that continue never give up, so that every
combination of signs is practised.
"""

Signs = tuple[str, ...]


@SOLUTIONS.register("guess_and_check")
def guess_and_check(row: Mapping[str, Any], rng: random.Random) -> str:
    """Write a trace for the countdown entry in `row` (`numbers` and `target`; plus and minus only).

    Raises ConfigError if the row has no such numbers, or if no combination of signs gives the target.
    """
    numbers, target = _read(row)
    choices = signs_in_order(len(numbers))
    start = rng.randrange(len(choices))
    first = choices[start]
    if rng.random() < UNCHECKED:
        return _trace([expression(numbers, first)], expression(numbers, first))
    gives_up = rng.random() < GIVES_UP
    checked: list[str] = []
    for signs in choices[start:] + choices[:start]:
        guess = expression(numbers, signs)
        hit = value(numbers, signs) == target
        checked.append(f"{guess}={value(numbers, signs)}/{target}{'!' if hit else '?'}")
        if hit or gives_up:
            return _trace(checked, guess)
    raise ConfigError(
        "task.options", f"{numbers} for {target}", "puzzles that plus and minus solve", "see task.solutions"
    )


def signs_in_order(count: int) -> list[Signs]:
    """List all combinations of `count` signs that contain a plus, fewest minus signs first.

    >>> ["".join(signs) for signs in signs_in_order(2)]
    ['++', '+-', '-+']
    """
    choices = [signs for signs in itertools.product("+-", repeat=count) if "+" in signs]
    return sorted(choices, key=lambda signs: signs.count("-"))


def expression(numbers: Sequence[int], signs: Signs) -> str:
    """Write the numbers with their signs, without a leading plus.

    >>> expression([3, 6, 2], ("+", "-", "+"))
    '3-6+2'
    """
    return "".join(f"{sign}{number}" for sign, number in zip(signs, numbers, strict=True)).removeprefix("+")


def value(numbers: Sequence[int], signs: Signs) -> int:
    """The value of the expression.

    >>> value([3, 6, 2], ("+", "-", "+"))
    -1
    """
    return sum(number if sign == "+" else -number for sign, number in zip(signs, numbers, strict=True))


def _read(row: Mapping[str, Any]) -> tuple[list[int], int]:
    try:
        return [int(number) for number in row["numbers"]], int(row["target"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "task.solutions",
            "guess_and_check",
            "a task whose rows have `numbers` and a `target`, such as reasoning_gym's countdown",
            f"this row has {', '.join(map(str, row))}",
        ) from error


def _trace(thoughts: Sequence[str], answer: str) -> str:
    return f"<think>{' wait, '.join(thoughts)}</think><answer>{answer}</answer>"
