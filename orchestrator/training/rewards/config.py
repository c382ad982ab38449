"""How rollouts are graded."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from orchestrator.training.settings import Settings


class RewardConfig(Settings):
    """The `reward` group."""

    components: dict[str, float] = Field(min_length=1)
    """Scorers with their weight in the reward: by registered name (`accuracy`, `format`, ...), or as
    `module:function`. The component is called by the name, or the function's."""
    workers: int = Field(ge=1)
    """How many actors score; each has a scoring process of its own."""
    timeout_seconds: float = Field(gt=0)
    """How long the scorers of one rollout may take before their process is killed."""
    memory_bytes: int = Field(ge=0)
    """The address space that the scorers' process may take; 0 sets no limit."""
    retries: int = Field(ge=0)
    """How often a rollout whose grading failed is graded again."""
    failure_reward: float
    """The reward of a rollout that could not be graded after the retries; counted in
    `reward/failed_fraction`, with its reason."""
    failure_budget: float = Field(ge=0, le=1)
    """The share of a step's rollouts that may end ungraded; above it the run fails loudly."""
    max_restarts: int = Field(ge=0)
    """How many reward workers may be lost over the run before it fails."""
    overlong_buffer: int = Field(ge=0)
    """DAPO's soft overlong punishment: the last `overlong_buffer` tokens before `max_new_tokens` lower the
    reward linearly to -1; 0 turns it off."""
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
