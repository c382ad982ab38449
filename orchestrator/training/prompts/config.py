"""The `task` group of the config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class TaskConfig(Settings):
    """The prompts, their reference answers, and their split into training and held-out prompts."""

    name: str
    """Name of the task in reports, and prefix of its prompt ids."""
    source: Literal["reasoning_gym", "jsonl", "parquet", "dataset_folder"]
    """`reasoning_gym`: the generator `dataset` with `options`; `jsonl` and `parquet`: the file
    `path`; `dataset_folder`: a Hugging Face dataset saved by `save_to_disk`, or a folder of its
    parquet/jsonl files, at `path`."""
    dataset: str | None
    """The reasoning_gym dataset (`chain_sum`, `countdown`, ...)."""
    options: dict[str, Any]
    """Arguments of the generator."""
    path: str | None
    """The file or folder of the prompts, for all sources except `reasoning_gym`."""
    prompt_field: str
    """Column with the question (files and folders)."""
    answer_field: str
    """Column with the reference answer (files and folders): a text, a number, or a list of accepted answers.
    Scorers can read the remaining columns as `completion.prompt.columns`.
    """
    solution_field: str | None
    """Column with a worked solution for a cold start; null if there is none."""
    template: str
    """Template of the prompt, with `{question}` or other columns of a row as placeholders (for a
    reasoning_gym entry, the fields of its metadata, such as countdown's `{numbers}` and `{target}`). Lists
    are joined by commas; `{{` and `}}` write braces. The template should ask for the answer format that the
    reward expects. For a model with a chat template, it is the user's message.
    """
    solutions: str | None
    """Registered name of the function that writes worked solutions for a cold start; null: none."""
    train_size: int = Field(ge=1)
    """Number of distinct training prompts."""
    heldout_size: int = Field(ge=1)
    """Number of distinct held-out prompts. They are never trained on."""
    seed: int = Field(ge=0)
    """Seed of the generator and of the split. It is independent of the run's seed, so that runs with
    different seeds use the same data.
    """
