"""The contract of prompt sources: order, epochs, resume, and a separate held-out set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.records import Prompt
from orchestrator.training.stages import PromptSource

TRAIN, HELDOUT = 12, 4
Make = Callable[[int], PromptSource]


def in_memory(folder: Path) -> Make:
    train = [Prompt(f"t/train/{index}", f"{index}?", {}) for index in range(TRAIN)]
    heldout = [Prompt(f"t/heldout/{index}", f"held {index}?", {}) for index in range(HELDOUT)]
    return lambda seed: EpochPrompts(train, heldout, seed)


def generated(folder: Path) -> Make:
    return lambda seed: load_prompts(task(source="reasoning_gym", dataset="chain_sum"), seed)


def of_a_file(folder: Path) -> Make:
    path = folder / "questions.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(TRAIN + HELDOUT))
    )
    return lambda seed: load_prompts(task(source="jsonl", path=str(path)), seed)


def task(**changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": "t",
        "dataset": None,
        "options": {},
        "path": None,
        "prompt_field": "question",
        "answer_field": "answer",
        "solution_field": None,
        "template": "{question}",
        "solutions": None,
        "train_size": TRAIN,
        "heldout_size": HELDOUT,
        "seed": 0,
    }
    return TaskConfig(**(values | changes))


@pytest.fixture(params=[in_memory, generated, of_a_file])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return request.param(tmp_path)


def test_an_epoch_has_every_prompt_once(make: Make) -> None:
    source = make(0)
    first, second = source.take(TRAIN), source.take(TRAIN)
    assert len({prompt.prompt_id for prompt in first}) == TRAIN
    assert {prompt.prompt_id for prompt in first} == {prompt.prompt_id for prompt in second}
    assert list(first) != list(second)


def test_the_order_does_not_depend_on_how_many_prompts_are_taken_at_once(make: Make) -> None:
    at_once, piecewise = make(0), make(0)
    expected = list(at_once.take(30))
    assert [prompt for count in (0, 1, 7, 20, 2) for prompt in piecewise.take(count)] == expected


def test_the_order_depends_on_the_seed(make: Make) -> None:
    assert list(make(0).take(TRAIN)) == list(make(0).take(TRAIN))
    assert list(make(0).take(TRAIN)) != list(make(1).take(TRAIN))


@pytest.mark.parametrize("taken", [0, 5, TRAIN, TRAIN + 1, 3 * TRAIN])
def test_a_resumed_source_continues(make: Make, taken: int) -> None:
    source = make(0)
    source.take(taken)
    state = json.loads(json.dumps(source.state_dict()))
    resumed = make(0)
    resumed.load_state_dict(state)
    assert list(resumed.take(20)) == list(source.take(20))


def test_restoring_an_earlier_state_repeats_the_order(make: Make) -> None:
    source = make(0)
    state = source.state_dict()
    before = list(source.take(2 * TRAIN))
    source.load_state_dict(state)
    assert list(source.take(2 * TRAIN)) == before


def test_heldout_prompts_are_fixed_and_never_trained_on(make: Make) -> None:
    source = make(0)
    heldout = list(source.heldout(HELDOUT))
    trained = {prompt.text for prompt in source.take(2 * TRAIN)}
    assert not trained & {prompt.text for prompt in heldout}
    assert list(source.heldout(HELDOUT)) == heldout
    assert list(make(1).heldout(2)) == heldout[:2]


def test_a_prompt_is_found_by_its_id(make: Make) -> None:
    source = make(0)
    for prompt in (*source.take(3), *source.heldout(2)):
        assert source.get(prompt.prompt_id) == prompt
