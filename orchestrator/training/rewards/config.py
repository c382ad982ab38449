"""The `reward` group of the config."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from orchestrator.training.rewards.answers import AnswerFormat
from orchestrator.training.settings import Settings


class RewardConfig(Settings):
    """How rollouts are rewarded."""

    components: dict[str, float] = Field(min_length=1)
    """Scorers with their weights in the reward: registered names (`accuracy`, `format`, ...) or
    `module:function`. A component is called by the name, or by the function's name."""
    answer_formats: list[AnswerFormat] = Field(min_length=1)
    """Where the scorer `accuracy` looks for the answer; the first format that finds one decides. `tags`: the
    last `<answer>...</answer>`; `boxed`: the last `\\boxed{...}`; `hashes`: after the last `####`; `phrase`:
    after the last "the answer is". Text inside `<think>...</think>`, or after a `<think>` that is never
    closed, is not searched."""
    workers: int = Field(ge=1)
    """How many reward workers (actors) there are. Each runs its scorers in processes of its own."""
    concurrency: int = Field(ge=1)
    """How many rollouts each worker scores at once if the scorers wait for something, such as a server:
    asynchronous and batched scorers in one process, plain ones in as many processes. Scorers that compute use
    one process, whatever this says."""
    timeout_seconds: float = Field(gt=0)
    """How long the scorers may take for one rollout, or for one batch of a batched scorer, before their
    process is stopped."""
    memory_bytes: int = Field(ge=0)
    """The address space of each process with scorers; 0 sets no limit."""
    file_bytes: int = Field(ge=0)
    """The largest file that scorers may write, the log of what they print included; 0 sets no limit."""
    environment: list[str]
    """Names of environment variables that scorers need although they look like secrets, such as
    `OPENAI_API_KEY`. Variables that look like secrets are withheld from scorers otherwise."""
    retries: int = Field(ge=0)
    """How often a rollout is scored again after a failure."""
    failure_reward: float
    """The reward of a rollout that could not be scored, even after the retries. Such rollouts count in
    `reward/failed_fraction`."""
    failure_budget: float = Field(ge=0, le=1)
    """The share of a step's rollouts that may remain without a score; above it the run fails."""
    max_restarts: int = Field(ge=0)
    """How many reward workers may be lost over the whole run before it fails."""
    overlong_buffer: int = Field(ge=0)
    """DAPO's soft overlong punishment: over the last `overlong_buffer` tokens before the length limit the
    reward falls linearly by up to 1. 0 turns it off."""
    reflection_pattern: str
    """A regular expression that marks a rollout as checking itself."""

    @field_validator("reflection_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"a regular expression: {error}") from error
        return pattern
