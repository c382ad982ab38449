"""The configuration of rollout sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings

StopString = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
OnNewWeights = Literal["finish", "continue", "recompute"]
"""What happens to running rollouts when new weights arrive."""


class RolloutConfig(Settings):
    """The `rollout` group."""

    engine: str
    """By registered name: `hf` samples with transformers, `vllm` samples with vLLM, `worked_solutions` plays
    back the task's worked solutions (a cold start).
    """
    engine_options: dict[str, Any]
    """Options of the engine that do not change what is sampled, such as `tensor_parallel_size` of `vllm`: see
    docs/how-to/sample-with-vllm.md. Engines without options accept none.
    """
    workers: int = Field(ge=1)
    """Number of rollout workers. Each is an actor with its own copy of the model."""
    min_workers: Annotated[int, Field(ge=1)] | None
    """How many of them the run cannot do without; null: all. A run begins when it has these, and the others
    join as soon as the cluster has slots for them, also after their node was lost. `orchestrator workers`
    changes their number, never below this.
    """
    group_size: int = Field(ge=1)
    """G, rollouts per prompt. Group-relative algorithms need 2 or more."""
    prompts_per_step: int = Field(ge=1)
    """P, prompts per learner step."""
    over_sample_rate: float = Field(ge=0, le=1)
    """Share of `prompts_per_step` by which more groups are sampled than a batch needs; 0: none. A batch does
    not wait for its slowest groups then, at most for this share fewer: what is unfinished is cancelled and
    booked as waste. At `max_staleness: 0`, so many more groups are requested for each batch. Above 0, later
    groups are in progress anyway, and only those are cancelled that would become too stale.

    This favours short rollouts, and which groups form a batch depends on timing.
    """
    temperature: float = Field(ge=0)
    """Logits are divided by it; 1 samples from the unchanged distribution, 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens of this total probability; 1 keeps all."""
    top_k: int = Field(ge=0)
    """Only the k most probable tokens are sampled; 0: all. Refused for losses that need the sampled
    distribution, as `top_p` below 1, `min_p`, `repetition_penalty` and `min_new_tokens` are.
    """
    min_p: float = Field(ge=0, le=1)
    """Only tokens that are at least this share as probable as the most probable one are sampled; 0: all."""
    repetition_penalty: float = Field(gt=0)
    """Makes tokens that the prompt or the response already contains less probable (above 1) or more probable
    (below 1): their logits are divided by it if they are positive, and multiplied by it otherwise. 1: off.
    """
    stop: tuple[StopString, ...]
    """Strings that end a response. Its text ends before the stop string, so scorers do not see it: do not use
    a tag that the reward needs. All sampled tokens are kept and trained on, also those of the stop string.
    """
    stop_token_ids: tuple[TokenId, ...]
    """Ids of tokens that end a response, in addition to the tokens with which the model ends it."""
    min_new_tokens: int = Field(ge=0)
    """The fewest tokens of a response: the first ones cannot be tokens that end it, and a stop string that is
    complete within them does not end it. 0: off.
    """
    thinking_token_budget: int | None = Field(ge=0)
    """The most tokens that a response samples between `<think>` and `</think>`. When they are used up, the
    closing tag is appended and the model goes on with its answer. The appended tokens were not sampled, so
    they are not trained on. null: no limit. Responses that do not think are not limited.
    """
    max_new_tokens: int = Field(ge=1)
    """The most tokens of a response; a longer one is truncated."""
    max_batch_rows: int = Field(ge=1)
    """The most rows that a worker samples at the same time."""
    on_new_weights: OnNewWeights
    """What happens to running rollouts when new weights arrive. `finish`: they are completed with the weights
    they began with, and the new ones are loaded when the next request arrives. `continue`: the worker loads
    new weights at once, between two tokens, and running rollouts continue with them and with the keys and
    values of the old ones. `recompute`: like `continue`, but their keys and values are recomputed.

    Every token records the version it was sampled with; the oldest one decides how stale a rollout is. The
    setting has no effect at `max_staleness: 0`, where no rollout is running when weights are published.
    """
    stream_seconds: float = Field(gt=0)
    """How often a worker hands over the groups of a request that are complete, so that they are scored while
    others are still being sampled.
    """
    record_routes: bool
    """For mixture-of-experts models: record the experts chosen for each token, so that the learner uses the
    same ones (rollout routing replay).
    """
    threads: int = Field(ge=0)
    """CPU threads per worker; 0: torch's default."""
    max_restarts: int = Field(ge=0)
    """How many workers may be lost during the run before it fails. Those above `min_workers` are counted one
    by one, without losses of whole nodes; one that was lost more often leaves, and the run goes on.
    """
    max_data_losses: int = Field(ge=0)
    """How often rollouts or published weights may be lost with their node during the run before it fails.
    Lost rollouts are sampled again, and lost weights are published again.
    """

    @property
    def permanent_workers(self) -> int:
        """The number of workers that the run cannot do without."""
        return self.workers if self.min_workers is None else self.min_workers
