"""From a task's config to its prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping

from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.questions import Question, QuestionStream
from orchestrator.training.prompts.solutions import SOLUTIONS
from orchestrator.training.prompts.source import EpochPrompts, WriteSolution
from orchestrator.training.prompts.split import split_questions
from orchestrator.training.records import Prompt


def load_prompts(config: TaskConfig, seed: int) -> EpochPrompts:
    """The task's prompts, in an order seeded by `seed` (the run's; the data depends on `task.seed` alone).

    Raises DatasetError where data can't be read, ConfigError where a generator, a template or a writer of
    solutions can't be used or where there are too few distinct questions.
    """
    split = split_questions(_stream(config), config.train_size, config.heldout_size)
    train = {f"{config.name}/train/{index}": question for index, question in enumerate(split.train)}
    heldout = {f"{config.name}/heldout/{index}": question for index, question in enumerate(split.heldout)}
    write = None if config.solutions is None else _writer(config.solutions, config.seed, train)
    return EpochPrompts(_prompts(train), _prompts(heldout), seed, write)


def _stream(config: TaskConfig) -> QuestionStream:
    # Each source is imported where it is used: reasoning_gym and pyarrow take their time.
    if config.source == "reasoning_gym":
        from orchestrator.training.prompts.generated import generated_questions

        return generated_questions(config)
    from orchestrator.training.prompts.files import file_questions

    return file_questions(config)


def _prompts(questions: Mapping[str, Question]) -> list[Prompt]:
    return [
        Prompt(prompt_id, question.text, question.reference, question.solution)
        for prompt_id, question in questions.items()
    ]


def _writer(name: str, seed: int, questions: Mapping[str, Question]) -> WriteSolution:
    """New chance for each prompt and epoch, the same in every run."""
    solution_of = SOLUTIONS.get(name)

    def write(prompt_id: str, epoch: int) -> str:
        rng = random.Random(f"solutions/{seed}/{prompt_id}/{epoch}")
        return solution_of(questions[prompt_id].fields, rng)

    return write
