"""Traces of chain_sum: every partial sum is correct, and the last one is the answer."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.solutions.chain_sum import chain_sum

STEP = re.compile(r"(-?\d+)([+-])(-?\d+)=(-?\d+)")


def trace(expression: str) -> str:
    return chain_sum({"expression": expression}, random.Random(0))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("5 - 3 + 6", "<think>5-3=2 2+6=8</think><answer>8</answer>"),
        ("1 - 8 - 2", "<think>1-8=-7 -7-2=-9</think><answer>-9</answer>"),
        ("-3 - -4", "<think>-3--4=1</think><answer>1</answer>"),
        ("12", "<think>12</think><answer>12</answer>"),
    ],
)
def test_traces_of_examples(expression: str, expected: str) -> None:
    assert trace(expression) == expected


@pytest.mark.parametrize(
    "row", [{}, {"expression": "2 * 3"}, {"expression": "2 +"}, {"expression": 5}, {"expression": ""}]
)
def test_a_row_without_such_an_expression_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task\.solutions: got chain_sum, allowed: a task whose rows have"):
        chain_sum(row, random.Random(0))


@pytest.mark.slow
def test_all_traces_of_the_shipped_task_are_correct_and_fit() -> None:
    config = compose("sft", ["task=chain_sum"])
    prompts = load_prompts(config.task, config.seed).first_epoch
    assert len(prompts) == config.task.train_size
    for prompt in prompts[:500]:
        steps = STEP.findall(prompt.solution)
        totals = [int(left) + (1 if sign == "+" else -1) * int(right) for left, sign, right, _ in steps]
        assert totals == [int(step[3]) for step in steps]
        assert prompt.solution.endswith(f"={totals[-1]}</think><answer>{totals[-1]}</answer>")
        assert str(totals[-1]) == prompt.reference["entry"]["answer"]
        assert len(prompt.solution) < config.rollout.max_new_tokens
