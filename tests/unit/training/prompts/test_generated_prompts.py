from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.generated import FastCountdown, generated_questions
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.prompts.solutions import SOLUTIONS
from orchestrator.training.reasoning_gym_import import CountdownConfig, get_score_answer_fn

COUNTDOWN = {"min_numbers": 3, "max_numbers": 3, "max_value": 9, "min_target": 1, "operators": ["+", "-"]}


def task(dataset: str = "countdown", **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": "t",
        "source": "reasoning_gym",
        "dataset": dataset,
        "options": COUNTDOWN if dataset == "countdown" else {},
        "path": None,
        "prompt_field": "question",
        "answer_field": "answer",
        "solution_field": None,
        "template": "{question}",
        "solutions": None,
        "train_size": 20,
        "heldout_size": 5,
        "seed": 0,
    }
    return TaskConfig(**(values | changes))


def test_prompts_contain_the_data_of_their_scorer() -> None:
    prompt = load_prompts(task(template="{numbers}={target}"), seed=0).get("t/train/3")
    metadata = prompt.reference["entry"]["metadata"]
    assert prompt.text == f"{','.join(map(str, metadata['numbers']))}={metadata['target']}"
    assert prompt.reference["dataset"] == "countdown"
    scorer: Any = get_score_answer_fn("countdown")
    assert scorer(prompt.reference["entry"]["answer"], prompt.reference["entry"]) == 1.0


def test_the_data_depends_on_the_tasks_seed_only() -> None:
    first, again = load_prompts(task(), seed=0), load_prompts(task(), seed=1)
    assert first.digest == again.digest
    assert first.take(20) != again.take(20)
    assert load_prompts(task(seed=1), seed=0).digest != first.digest


def test_more_training_data_does_not_change_the_heldout_set() -> None:
    small, large = load_prompts(task(train_size=20), seed=0), load_prompts(task(train_size=200), seed=0)
    assert small.heldout(5) == large.heldout(5)
    assert small.get("t/train/7") == large.get("t/train/7")


def test_neighbouring_seeds_share_no_questions() -> None:
    """Upstream seeds entry i with seed + i: seeds 0 and 1 would give the same stream, shifted by one."""
    config = task("chain_sum", train_size=100)
    texts = [
        {prompt.text for prompt in load_prompts(config.model_copy(update={"seed": seed}), 0).take(100)}
        for seed in (0, 1)
    ]
    assert len(texts[0] & texts[1]) < 20


@pytest.mark.parametrize("operators", [("+", "-"), ("+", "-", "*", "/")])
def test_fast_countdown_obeys_its_options(operators: tuple[str, ...]) -> None:
    config = CountdownConfig(
        min_numbers=3,
        max_numbers=4,
        min_value=2,
        max_value=12,
        min_target=5,
        max_target=60,
        operators=operators,
        seed=3,
        size=200,
    )
    dataset = FastCountdown(config)
    for index in range(60):
        entry = dataset[index]
        metadata = entry["metadata"]
        assert 5 <= metadata["target"] <= 60
        assert 3 <= len(metadata["numbers"]) <= 4
        assert all(2 <= number <= 12 for number in metadata["numbers"])
        assert not set("*/") - set(operators) & set(entry["answer"])
        assert dataset.score_answer(entry["answer"], entry) == 1.0


def test_too_few_distinct_questions_are_reported_with_their_number() -> None:
    options = COUNTDOWN | {"max_value": 2, "operators": ["+"]}
    with pytest.raises(ConfigError, match="these options: 2 held-out prompts and 4 for training"):
        load_prompts(task(options=options, template="{numbers}={target}", heldout_size=2), seed=0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"min_target": 900, "max_target": 999}, "no target from 900 to 999"),
        ({"min_numbers": 0}, "min_numbers"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_options_that_cannot_be_satisfied_are_rejected(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.options") as caught:
        load_prompts(task(options=COUNTDOWN | options), seed=0)
    assert why in str(caught.value)


def test_an_unknown_dataset_suggests_similar_names() -> None:
    with pytest.raises(ConfigError, match="did you mean countdown"):
        generated_questions(task("countdwon"))


def test_a_dataset_that_cannot_be_scored_from_json_is_rejected() -> None:
    with pytest.raises(ConfigError, match="needs Python tuples"):
        generated_questions(task("rearc"))


@pytest.mark.parametrize("field", ["answer", "expression"])
def test_the_solution_in_the_metadata_never_reaches_a_prompt(field: str) -> None:
    with pytest.raises(ConfigError, match=f"got {{{field}}}"):
        load_prompts(task(template=f"{{question}} {{{field}}}"), seed=0)


def test_entries_with_fractions_are_converted_to_json() -> None:
    source = load_prompts(task("gsm_symbolic", train_size=150), seed=0)
    assert len(source) == 150


def test_worked_solutions_are_a_function_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(row: Mapping[str, Any], rng: random.Random) -> str:
        return f"{row['expression']} {rng.random()}"

    monkeypatch.setattr(SOLUTIONS, "get", {"test": write}.__getitem__)
    first = load_prompts(task(solutions="test"), seed=0)
    again = load_prompts(task(solutions="test", train_size=40), seed=5)
    assert first.get("t/train/3").solution == again.get("t/train/3").solution
    assert first.get("t/train/3").solution.split()[-1] != first.get("t/train/4").solution.split()[-1]
    size = len(first)
    epochs = [{prompt.prompt_id: prompt.solution for prompt in first.take(size)} for _ in range(2)]
    assert epochs[0]["t/train/3"] != epochs[1]["t/train/3"]
