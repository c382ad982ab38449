"""How rollouts are sampled."""

from __future__ import annotations

from pydantic import Field

from orchestrator.training.settings import Settings


class RolloutConfig(Settings):
    """The `rollout` group."""

    engine: str
    """By registered name: `hf` samples from the model, `worked_solutions` plays back the task's worked
    solutions (a cold start).
    """
    workers: int = Field(ge=1)
    """How many actors sample; each holds a copy of the model."""
    group_size: int = Field(ge=1)
    """G, rollouts per prompt. Group-relative algorithms need 2 or more."""
    prompts_per_step: int = Field(ge=1)
    """P, prompts a learner step."""
    temperature: float = Field(ge=0)
    """Logits are divided by it; 1 samples from the model as it is, 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens of this total probability; 1 keeps all."""
    max_new_tokens: int = Field(ge=1)
    """The most tokens of a response; a longer one is truncated."""
    max_batch_rows: int = Field(ge=1)
    """Rows that a worker samples at once."""
    record_routes: bool
    """Note which experts each token went to, so that the learner sends it the same way (rollout routing
    replay); for mixtures of experts."""
    threads: int = Field(ge=0)
    """CPU threads a worker computes with; 0 leaves the choice to torch."""
    max_restarts: int = Field(ge=0)
    """How many workers may be lost over the run before it fails."""
    max_data_losses: int = Field(ge=0)
    """How often rollouts or published weights may be lost over the run, with the node that held them,
    before it fails. Lost rollouts are sampled again and lost weights are published again.
    """
