"""Countdown by guessing, checking, and guessing again: the traces that a cold start imitates.

    3,6,2=7    <think>3+6+2=11/7? wait, 3+6-2=7/7!</think><answer>3+6-2</answer>

The numbers stay in their order and get signs; each guess is worked out in full, the target is written beside
what it came to, and a mark says whether they are equal (`!`) or not (`?`). After a miss a trace says "wait, "
and takes the next choice of signs, in a fixed order from a random start, so that no guess comes twice. What
reinforcement learning is to find out is left open on purpose: most traces whose first guess misses give up
and answer it all the same, and some answer without checking. The rewards then say that checking, and going
on, pays.

The comparison decides whether a cold start is any good. Without the mark nothing but the choice between
"wait" and the end of the thought says that a guess was compared with the target, and that choice is left to
chance after a first miss. With the mark, but the target only at the beginning of the prompt, some seeds had
learnt to add and not to compare. Copied beside the result it is a matter of neighbouring characters.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.solutions import SOLUTIONS

UNCHECKED = 0.1
"""Share of traces that answer their first guess without working it out."""
GIVES_UP = 0.6
"""Share of traces that answer a first guess that misses. Above one half, so that a model that does what is
most likely gives up; those that go on never do, so that every choice of signs is practised."""

Signs = tuple[str, ...]


@SOLUTIONS.register("guess_and_check")
def guess_and_check(row: Mapping[str, Any], rng: random.Random) -> str:
    """A trace for the countdown entry in `row` (`numbers` and `target`; plus and minus only).

    Raises ConfigError if the row has no such numbers, or if no choice of signs gives the target.
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
    """All choices of `count` signs with a plus among them, those with fewer minus signs first.

    >>> ["".join(signs) for signs in signs_in_order(2)]
    ['++', '+-', '-+']
    """
    choices = [signs for signs in itertools.product("+-", repeat=count) if "+" in signs]
    return sorted(choices, key=lambda signs: signs.count("-"))


def expression(numbers: Sequence[int], signs: Signs) -> str:
    """The numbers with their signs; a plus in front goes without saying.

    >>> expression([3, 6, 2], ("+", "-", "+"))
    '3-6+2'
    """
    return "".join(f"{sign}{number}" for sign, number in zip(signs, numbers, strict=True)).removeprefix("+")


def value(numbers: Sequence[int], signs: Signs) -> int:
    """What the expression comes to.

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
