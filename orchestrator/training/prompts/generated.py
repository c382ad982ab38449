"""Questions of a reasoning_gym generator, with the entries that its own scorer needs.

This module is only imported if `task.source` is `reasoning_gym`, because the library
takes most of a second to load.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.json_values import as_json
from orchestrator.training.prompts.questions import Question, QuestionStream, normalised
from orchestrator.training.prompts.template import render
from orchestrator.training.reasoning_gym_import import (
    DATASETS,
    CountdownDataset,
    ProceduralDataset,
    missing_solver,
)

# Exceptions of generators whose options cannot be satisfied: assertions, ValueErrors, errors
# of `random` for empty ranges.
_GENERATOR_ERRORS = (AssertionError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError)
_COUNTDOWN_ATTEMPTS = 1000
# The metadata of an entry also contains its solution; these fields cannot be used in a template.
_GIVES_AWAY = re.compile("answer|solution")
_GIVES_AWAY_IN = {"countdown": {"expression"}}


def generated_questions(config: TaskConfig) -> QuestionStream:
    """Return an endless stream of the generator's entries 0, 1, 2, ... Its seeds are far from
    those of any other `task.seed`.

    Raises ConfigError for an unknown dataset, for invalid options, and for a dataset
    that cannot be scored from JSON.
    """
    name = config.dataset or ""
    if name not in DATASETS:
        close = ", ".join(difflib.get_close_matches(name, DATASETS, n=3))
        hint = f"did you mean {close}?" if close else ""
        raise ConfigError("task.dataset", name, f"one of reasoning_gym's {len(DATASETS)} datasets", hint)
    if solver := missing_solver(name):
        raise ConfigError(
            "task.dataset", name, "a dataset whose solver is installed", f"pip install {solver}"
        )
    chunk = config.train_size + config.heldout_size
    first = _dataset(config, 0, chunk)
    try:
        _check_gradable(name, first, first[0])
    except _GENERATOR_ERRORS as error:
        raise _bad_options(config, error) from error
    return QuestionStream(
        questions=_stream(config, chunk),
        heldout=None,
        endless=True,
        key="task.dataset",
        origin=f"reasoning_gym's {name} with these options",
    )


class FastCountdown(CountdownDataset):
    """reasoning_gym's countdown with integer arithmetic. The original evaluates each expression with
    sympy, which takes about 1 ms.
    """

    def _generate_expression(self, rng: Random) -> tuple[str, list[int], int]:
        config = self.config
        count = rng.randint(config.min_numbers, config.max_numbers)
        for _ in range(_COUNTDOWN_ATTEMPTS):
            numbers = [rng.randint(config.min_value, config.max_value) for _ in range(count)]
            expression, target = _fold(numbers, config.operators, rng)
            if config.min_target <= target <= config.max_target:
                return expression, numbers, target
        raise ValueError(
            f"found no target from {config.min_target} to {config.max_target} "
            f"in {_COUNTDOWN_ATTEMPTS} attempts"
        )


def _fold(numbers: list[int], operators: tuple[str, ...], rng: Random) -> tuple[str, int]:
    """Combine the numbers with random operators from left to right. A division with a remainder becomes a
    subtraction, so that values stay integers.
    """
    expression, value = str(numbers[0]), numbers[0]
    for number in numbers[1:]:
        operator = rng.choice(operators)
        if operator in "*/" and not expression.isdigit():
            expression = f"({expression})"
        if operator == "/" and value % number:
            operator = "-"
        expression = f"{expression} {operator} {number}"
        if operator == "+":
            value += number
        elif operator == "-":
            value -= number
        elif operator == "*":
            value *= number
        else:
            value //= number
    return expression, value


_FASTER: Mapping[str, type[ProceduralDataset]] = {"countdown": FastCountdown}


def _dataset(config: TaskConfig, chunk: int, size: int) -> ProceduralDataset:
    digest = hashlib.blake2b(f"reasoning_gym/{config.seed}".encode(), digest_size=4).digest()
    seed = int.from_bytes(digest) + chunk * size
    upstream, config_class = DATASETS[config.dataset or ""]
    try:
        return _FASTER.get(config.dataset or "", upstream)(
            config_class(**(_tuples(config.options) | {"seed": seed, "size": size}))
        )
    except _GENERATOR_ERRORS as error:
        raise _bad_options(config, error) from error


def _stream(config: TaskConfig, size: int) -> Iterator[Question | None]:
    for chunk in itertools.count():
        dataset = _dataset(config, chunk, size)
        for index in range(size):
            try:
                entry: dict[str, Any] = dataset[index]
            except _GENERATOR_ERRORS:
                yield None
            else:
                yield _question(config, entry)


def _question(config: TaskConfig, entry: dict[str, Any]) -> Question:
    name = config.dataset or ""
    entry = as_json(entry)
    fields = {**entry["metadata"], "question": entry["question"], "answer": entry["answer"]}
    hidden = {field for field in fields if _GIVES_AWAY.search(field)} | _GIVES_AWAY_IN.get(name, set())
    return Question(
        text=render(config.template, fields, hidden),
        content=_content(name, entry),
        fields=fields,
        reference={"dataset": name, "entry": entry},
    )


def _content(name: str, entry: Mapping[str, Any]) -> str:
    """Build a key that is equal for equivalent questions: for countdown, the
    sorted numbers and the target.
    """
    if name == "countdown":
        metadata = entry["metadata"]
        return f"{sorted(metadata['numbers'])} {metadata['target']}"
    return normalised(entry["question"])


def _check_gradable(name: str, dataset: ProceduralDataset, entry: dict[str, Any]) -> None:
    """Raise ConfigError if the dataset's scorer fails on JSON: a few scorers compare
    tuples, which JSON turns into lists.
    """
    answer = entry["answer"]
    if answer is None:
        return
    if dataset.score_answer(answer, entry) != dataset.score_answer(answer, as_json(entry)):
        raise ConfigError(
            "task.dataset", name, "a dataset whose scorer reads JSON", "this one needs Python tuples"
        )


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert lists to tuples, which generators expect and YAML lacks."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _bad_options(config: TaskConfig, error: Exception) -> ConfigError:
    return ConfigError(
        "task.options",
        json.dumps(config.options, default=str),
        f"options that reasoning_gym's {config.dataset} can satisfy",
        f"{type(error).__name__}: {error}",
    )
