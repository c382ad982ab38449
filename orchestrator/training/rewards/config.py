"""The `reward` group of the config."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from orchestrator.training.rewards.answers import AnswerFormat
from orchestrator.training.settings import Settings


class RewardConfig(Settings):
    """The scorers, their weights, and the limits of the processes in which they run."""

    components: dict[str, float] = Field(min_length=1)
    """Scorers and their weights in the reward. A scorer is a registered name (`accuracy`, `format`, ...) or
    `module:function`; the component is called by that name, or by the name of the function.
    """
    answer_formats: list[AnswerFormat] = Field(min_length=1)
    """Where the scorer `accuracy` looks for the answer; the first format that finds one decides. `tags`: the
    last `<answer>...</answer>`; `boxed`: the last `\\boxed{...}`; `hashes`: after the last `####`; `phrase`:
    after the last "the answer is". Text inside `<think>...</think>`, or after a `<think>` that is never
    closed, is not searched."""
    workers: int = Field(ge=1)
    """Number of reward workers (actors). Each of them runs its scorers in child processes."""
    concurrency: int = Field(ge=1)
    """Number of rollouts that each worker scores at once if its scorers wait for something, such as a server.
    Asynchronous and batched scorers do so in one process, plain ones in up to as many processes. CPU-bound
    scorers use one process in any case.
    """
    timeout_seconds: float = Field(gt=0)
    """Time limit of the scorers for one rollout, or for one batch of a batched scorer.
    After it their process is stopped.
    """
    memory_bytes: int = Field(ge=0)
    """Address space limit of each scorer process; 0 sets no limit."""
    file_bytes: int = Field(ge=0)
    """Size limit of each file that scorers write, including the log of their output; 0 sets no limit."""
    environment: list[str]
    """Names of environment variables that scorers may see although they look like secrets, such as
    `OPENAI_API_KEY`. All other variables that look like secrets are withheld.
    """
    retries: int = Field(ge=0)
    """How many times a rollout is scored again after a failure."""
    failure_reward: float
    """Reward of rollouts that could not be scored even after the retries. They
    count in `reward/failed_fraction`.
    """
    failure_budget: float = Field(ge=0, le=1)
    """Share of the rollouts of a step that may remain without a score; above it the run fails."""
    max_restarts: int = Field(ge=0)
    """How many reward workers may be lost over the whole run before it fails."""
    overlong_buffer: int = Field(ge=0)
    """DAPO's soft overlong punishment: over the last `overlong_buffer` tokens before the length limit, the
    reward falls linearly by up to 1. 0 disables it.
    """
    reflection_pattern: str
    """Regular expression; a rollout that matches it counts as reflecting on its own reasoning."""

    @field_validator("reflection_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"a regular expression: {error}") from error
        return pattern
