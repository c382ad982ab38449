"""From a task's config to its prompts."""

from __future__ import annotations

import random

from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.questions import Question, QuestionStream
from orchestrator.training.prompts.solutions import SOLUTIONS
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.prompts.split import split_questions
from orchestrator.training.records import Prompt


def load_prompts(config: TaskConfig, seed: int) -> EpochPrompts:
    """The task's prompts, in an order seeded by `seed` (the run's; the data depends on `task.seed` alone).

    Raises DatasetError where data can't be read, ConfigError where a generator, a template or a writer of
    solutions can't be used or where there are too few distinct questions.
    """
    split = split_questions(_stream(config), config.train_size, config.heldout_size)
    train = [_prompt(config, "train", index, question) for index, question in enumerate(split.train)]
    heldout = [_prompt(config, "heldout", index, question) for index, question in enumerate(split.heldout)]
    return EpochPrompts(train, heldout, seed)


def _stream(config: TaskConfig) -> QuestionStream:
    # Each source is imported where it is used: reasoning_gym and pyarrow take their time.
    if config.source == "reasoning_gym":
        from orchestrator.training.prompts.generated import generated_questions

        return generated_questions(config)
    from orchestrator.training.prompts.files import file_questions

    return file_questions(config)


def _prompt(config: TaskConfig, split: str, index: int, question: Question) -> Prompt:
    prompt_id = f"{config.name}/{split}/{index}"
    solution = question.solution
    if config.solutions is not None:
        rng = random.Random(f"solutions/{config.seed}/{prompt_id}")
        solution = SOLUTIONS.get(config.solutions)(question.fields, rng)
    return Prompt(prompt_id, question.text, question.reference, solution)
