"""Loads the prompts of a task from its config."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping

from orchestrator.errors import ConfigError, InputError
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.json_values import as_json
from orchestrator.training.prompts.questions import Question, QuestionStream
from orchestrator.training.prompts.solutions import SOLUTIONS, SolutionWriter
from orchestrator.training.prompts.source import EpochPrompts, WriteSolution
from orchestrator.training.prompts.split import split_questions
from orchestrator.training.records import Prompt

logger = logging.getLogger(__name__)

_ESCAPED_NEWLINE = re.compile(r"\\n(?!abla|atural|e\b|eg|eq|ewline|exists|i\b|leq|mid|ot|parallel|u\b)")
"""A backslash followed by n, unless it begins a LaTeX command."""


def load_prompts(config: TaskConfig, seed: int, *, with_solutions: bool = True) -> EpochPrompts:
    """Load the task's prompts, in an order seeded by `seed` (the run's seed; the
    data only depends on `task.seed`).

    Worked solutions are only written `with_solutions`, for a cold start. Raises DatasetError for data
    that cannot be read, and ConfigError for an unusable generator, template or solution writer, or
    for too few distinct questions.
    """
    if _ESCAPED_NEWLINE.search(config.template):
        logger.warning(
            "task.template contains a backslash followed by n, which the model will see literally. For a "
            "line break, write the template in YAML, or in bash as $'task.template=\"{question}\\nAnswer:\"'"
        )
    writer = SOLUTIONS.get(config.solutions) if with_solutions and config.solutions is not None else None
    split = split_questions(_stream(config), config.train_size, config.heldout_size)
    train = {f"{config.name}/train/{index}": question for index, question in enumerate(split.train)}
    heldout = {f"{config.name}/heldout/{index}": question for index, question in enumerate(split.heldout)}
    write = None if writer is None else _seeded(writer, config, train)
    if write is not None:
        for prompt_id in train:
            write(prompt_id, 0)  # report a question without a solution now, not in the middle of a run
    return EpochPrompts(_prompts(train), _prompts(heldout), seed, write)


def _stream(config: TaskConfig) -> QuestionStream:
    # Each source is imported where it is used: reasoning_gym and pyarrow take long to import.
    if config.source == "reasoning_gym":
        from orchestrator.training.prompts.generated import generated_questions

        return generated_questions(config)
    from orchestrator.training.prompts.files import file_questions

    return file_questions(config)


def _prompts(questions: Mapping[str, Question]) -> list[Prompt]:
    return [
        Prompt(prompt_id, question.text, question.reference, question.solution, as_json(question.columns))
        for prompt_id, question in questions.items()
    ]


def _seeded(writer: SolutionWriter, config: TaskConfig, questions: Mapping[str, Question]) -> WriteSolution:
    """Wrap the writer so that it gets new random numbers for each prompt and epoch,
    which are the same in every run.
    """

    def write(prompt_id: str, epoch: int) -> str:
        rng = random.Random(f"solutions/{config.seed}/{prompt_id}/{epoch}")
        try:
            return writer(questions[prompt_id].fields, rng)
        except InputError:
            raise
        except Exception as error:
            raise ConfigError(
                "task.solutions",
                str(config.solutions),
                "a writer that solves every training question",
                f"{prompt_id}: {type(error).__name__}: {error}",
            ) from error

    return write
