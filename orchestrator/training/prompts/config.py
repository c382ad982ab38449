"""Where prompts come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class TaskConfig(Settings):
    """The `task` group."""

    name: str
    """What reports call it, and how its prompt ids begin."""
    source: Literal["reasoning_gym", "jsonl", "parquet", "dataset_folder"]
    """`reasoning_gym`: the generator `dataset` with `options`; `jsonl` and `parquet`: the file `path`;
    `dataset_folder`: a Hugging Face dataset saved by `save_to_disk`, or a folder of its parquet/jsonl files,
    at `path`."""
    dataset: str | None
    """The reasoning_gym dataset (`chain_sum`, `countdown`, ...)."""
    options: dict[str, Any]
    """Arguments of the generator."""
    path: str | None
    """The file or folder, for a `source` that reads one."""
    prompt_field: str
    """Which field of a row is the question (files and folders)."""
    answer_field: str
    """Which field of a row is the reference answer (files and folders)."""
    solution_field: str | None
    """Which field of a row is a worked solution for the cold start, if any."""
    template: str
    """The prompt that the model reads, with `{question}` or other fields of a row in it (of a reasoning_gym
    entry: what its metadata holds, such as countdown's `{numbers}` and `{target}`; lists are joined by
    commas). `{{` and `}}` write braces. A model with a chat template gets it as the user's message."""
    solutions: str | None
    """How worked solutions for the cold start are written, by registered name; null: the task has none."""
    train_size: int = Field(ge=1)
    """Distinct training prompts."""
    heldout_size: int = Field(ge=1)
    """Held-out prompts: the evaluation never sees a training prompt and the training never a held-out one."""
    seed: int = Field(ge=0)
    """Of the generator, and of the split. Not the run's seed: all runs of a comparison share the data."""
