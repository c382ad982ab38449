"""How much of the arithmetic of the demo's held-out puzzles occurs in the cold start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.config.compose import compose
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.solutions.guess_and_check import expression, signs_in_order, value
from orchestrator.training.records import Prompt


def numbers(prompt: Prompt) -> list[int]:
    metadata: dict[str, Any] = prompt.reference["entry"]["metadata"]
    return metadata["numbers"]


def solving_lines(prompt: Prompt) -> set[str]:
    target = prompt.reference["entry"]["metadata"]["target"]
    return {line for line in lines(numbers(prompt)) if line.endswith(f"={target}")}


def lines(terms: Sequence[int]) -> set[str]:
    """Every guess that a trace about these numbers may evaluate, such as `3+6-2=7`."""
    return {f"{expression(terms, signs)}={value(terms, signs)}" for signs in signs_in_order(len(terms))}


@pytest.mark.slow
def test_held_out_puzzles_are_new_and_most_of_their_sums_are_not() -> None:
    """The figures of docs/explanation/demo-recipe.md."""
    task = compose("sft", ["experiment=demo_sft"]).task
    prompts = load_prompts(task, seed=0, with_solutions=False)
    train, heldout = prompts.all_prompts[: len(prompts)], prompts.heldout(task.heldout_size)
    practised = {line for prompt in train for line in lines(numbers(prompt))}
    known = [prompt for prompt in heldout if solving_lines(prompt) & practised]
    orders = {tuple(numbers(prompt)) for prompt in train}
    unseen = [prompt for prompt in heldout if tuple(numbers(prompt)) not in orders]
    assert (len(heldout), len(known), len(unseen)) == (256, 212, 44)
    assert not {prompt.prompt_id for prompt in known} & {prompt.prompt_id for prompt in unseen}
    assert not {prompt.text for prompt in heldout} & {prompt.text for prompt in train}
