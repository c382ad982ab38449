"""Which config keys may change when a run is resumed: its length, its resources and its monitoring, but
nothing that changes the mathematics of the training that the checkpoint belongs to.

Every config key is listed in `CHANGEABLE` or `FIXED`, either by itself or by its group (`cluster`
covers all of `cluster.*`). A test fails for a key that is in neither. Keys in `MAY_GROW` are exceptions
to a group in `FIXED`.
"""

from __future__ import annotations

CHANGEABLE = (
    "steps",
    "purpose",
    "rollout.engine_options",
    "rollout.workers",
    "rollout.min_workers",
    "rollout.max_batch_rows",
    "rollout.stream_seconds",
    "rollout.threads",
    "rollout.max_restarts",
    "rollout.max_data_losses",
    "reward.workers",
    "reward.concurrency",
    "reward.timeout_seconds",
    "reward.memory_bytes",
    "reward.file_bytes",
    "reward.environment",
    "reward.retries",
    "reward.failure_budget",
    "reward.max_restarts",
    "learner.world_size",
    "learner.zero_stage",
    "learner.expert_parallel_size",
    "learner.micro_batch_tokens",
    "learner.bucket_bytes",
    "learner.activation_checkpointing",
    "learner.offload",
    "learner.threads",
    "learner.max_restarts",
    "learner.backend",
    "weights",
    "cluster",
    "tracking",
    "checkpoint",
    "evaluation",
    "ledger",
    "budget",
)

_UPDATES = "it would change the updates that the checkpoint's optimizer state belongs to"
_SAMPLES = "it would change what is sampled or how it is scored"
_BOOKED = "the ledger has already booked costs of the run under it"

FIXED = {
    "job": "a resumed run continues the same job",
    "stages": "a resumed pipeline keeps its stages; stages.<name>.<key> changes a key of one",
    "output_dir": "a run directory cannot be moved by resuming; --output-dir says where it is",
    "seed": "it would change all random draws",
    "max_staleness": "it would change which rollouts an update may see",
    "model": "the checkpoint's weights belong to this model",
    "task": "the checkpoint's position in the data belongs to this task",
    "rollout.engine": _SAMPLES,
    "rollout.group_size": _SAMPLES,
    "rollout.prompts_per_step": _SAMPLES,
    "rollout.over_sample_rate": "it would change which rollouts an update may see",
    "rollout.temperature": _SAMPLES,
    "rollout.top_p": _SAMPLES,
    "rollout.top_k": _SAMPLES,
    "rollout.min_p": _SAMPLES,
    "rollout.repetition_penalty": _SAMPLES,
    "rollout.stop": _SAMPLES,
    "rollout.stop_token_ids": _SAMPLES,
    "rollout.min_new_tokens": _SAMPLES,
    "rollout.thinking_token_budget": _SAMPLES,
    "rollout.max_new_tokens": _SAMPLES,
    "rollout.on_new_weights": "it would change which weights sample the rest of a rollout",
    "rollout.record_routes": "it would change which experts the learner sends tokens to",
    "reward.components": _SAMPLES,
    "reward.answer_formats": _SAMPLES,
    "reward.failure_reward": _SAMPLES,
    "reward.overlong_buffer": _SAMPLES,
    "reward.reflection_pattern": _SAMPLES,
    "algorithm": "it would change the training objective",
    "learner.minibatches": _UPDATES,
    "learner.epochs": _UPDATES,
    "learner.learning_rate": _UPDATES,
    "learner.warmup_steps": _UPDATES,
    "learner.schedule": _UPDATES,
    "learner.schedule_steps": _UPDATES,
    "learner.final_learning_rate": _UPDATES,
    "learner.adam_betas": _UPDATES,
    "learner.adam_epsilon": _UPDATES,
    "learner.weight_decay": _UPDATES,
    "learner.max_grad_norm": _UPDATES,
    "learner.router_bias_update_speed": _UPDATES,
    "learner.lora": "the checkpoint's weights belong to these adapters",
    "learner.sequence_balance_coefficient": _UPDATES,
    "organisation": _BOOKED,
    "cost_centre": _BOOKED,
    "team": _BOOKED,
    "project": _BOOKED,
    "price_book": "new prices are added to the ledger with their date: orchestrator cost prices adopt",
}
"""Keys and groups that must not change, with the reason that is shown to the user."""


MAY_GROW = {"model.context": "the sequences that the run has already sampled must still fit"}
"""Keys whose value may increase, with the reason why it must not decrease."""


def may_change(key: str) -> bool:
    """Whether `key` may change when a run is resumed, even if only to a larger value."""
    return key in MAY_GROW or _entry(key, CHANGEABLE) is not None


def why_fixed(key: str) -> str | None:
    """The reason why `key` must not change; None if it may change or does not exist."""
    if key in MAY_GROW:
        return None
    entry = _entry(key, tuple(FIXED))
    return None if entry is None else FIXED[entry]


def _entry(key: str, table: tuple[str, ...]) -> str | None:
    return next((entry for entry in table if key == entry or key.startswith(f"{entry}.")), None)
