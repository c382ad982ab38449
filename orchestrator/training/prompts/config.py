"""The `task` group of the config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class TaskConfig(Settings):
    """The `task` group."""

    name: str
    """The name in reports, and the beginning of its prompt ids."""
    source: Literal["reasoning_gym", "jsonl", "parquet", "dataset_folder"]
    """`reasoning_gym`: the generator `dataset` with `options`; `jsonl` and `parquet`: the file
    `path`; `dataset_folder`: a Hugging Face dataset saved by `save_to_disk`, or a folder of its
    parquet/jsonl files, at `path`."""
    dataset: str | None
    """The reasoning_gym dataset (`chain_sum`, `countdown`, ...)."""
    options: dict[str, Any]
    """Arguments of the generator."""
    path: str | None
    """The file or folder of a `source` that reads one."""
    prompt_field: str
    """The column that holds the question (files and folders)."""
    answer_field: str
    """The column that holds the reference answer (files and folders): a text, a number, or a list of
    accepted ones. Scorers see the remaining columns as `completion.prompt.columns`."""
    solution_field: str | None
    """The column that holds a worked solution for the cold start, if there is one."""
    template: str
    """The prompt, with `{question}` or other columns of a row in it (for a reasoning_gym entry: the
    fields of its metadata, such as countdown's `{numbers}` and `{target}`). Lists are joined by
    commas; `{{` and `}}` write braces. It must ask for what the reward reads. A model with a chat
    template gets it as the user's message."""
    solutions: str | None
    """The registered function that writes worked solutions for a cold start; null: none."""
    train_size: int = Field(ge=1)
    """Distinct training prompts."""
    heldout_size: int = Field(ge=1)
    """Distinct held-out prompts. None of them is trained on."""
    seed: int = Field(ge=0)
    """Seed of the generator and of the split. It is not the run's seed, so runs that
    are compared share their data."""
