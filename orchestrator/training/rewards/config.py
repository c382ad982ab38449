"""How rollouts are graded."""

from __future__ import annotations

from pydantic import Field

from orchestrator.training.settings import Settings


class RewardConfig(Settings):
    """The `reward` group."""

    components: dict[str, float]
    """Scorers by registered name (`accuracy`, `format`, ...) with their weight in the reward."""
    workers: int = Field(ge=1)
    timeout_seconds: float = Field(gt=0)
    """How long the scorers of one rollout may take before their process is killed."""
    retries: int = Field(ge=0)
    """How often a rollout whose grading failed is graded again."""
    failure_reward: float
    """The reward of a rollout that could not be graded after the retries; counted in `reward/failed_fraction`, with its reason."""
    failure_budget: float = Field(ge=0, le=1)
    """The share of a step's rollouts that may end ungraded; above it the run fails loudly."""
    max_restarts: int = Field(ge=0)
    """How many reward workers may be lost over the run before it fails."""
    overlong_buffer: int = Field(ge=0)
    """DAPO's soft overlong punishment: the last `overlong_buffer` tokens before `max_new_tokens` lower the reward linearly to -1; 0 turns it off."""
    reflection_pattern: str
    """A regular expression that marks a rollout as checking itself."""
