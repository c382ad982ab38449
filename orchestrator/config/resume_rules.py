"""What may change when a run is resumed: its length, its shape and its monitoring, never the mathematics that
the checkpoint depends on.

Every key of the config is in one of the tables `CHANGEABLE` and `FIXED`, by itself or by its group (`cluster`
stands for all of `cluster.*`). A test fails for a key that is in neither. Keys in `MAY_GROW` are exceptions
from a group in `FIXED`.
"""

from __future__ import annotations

CHANGEABLE = (
    "steps",
    "purpose",
    "rollout.workers",
    "rollout.max_batch_rows",
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
_SAMPLES = "it would change what is sampled, or how it is scored"
_BOOKED = "the ledger has booked the run under it"

FIXED = {
    "job": "a resumed run carries out the job it was started as",
    "stages": "a resumed pipeline keeps its stages; stages.<name>.<key> changes a key of one",
    "output_dir": "the run stays where it is: --output-dir says where that is",
    "seed": "it would change everything that is drawn at random",
    "max_staleness": "it would change which rollouts an update may see",
    "model": "the checkpoint's weights belong to this model",
    "task": "the position in the prompts belongs to this task",
    "rollout.engine": _SAMPLES,
    "rollout.group_size": _SAMPLES,
    "rollout.prompts_per_step": _SAMPLES,
    "rollout.temperature": _SAMPLES,
    "rollout.top_p": _SAMPLES,
    "rollout.max_new_tokens": _SAMPLES,
    "rollout.record_routes": "it would change which experts the learner sends tokens to",
    "reward.components": _SAMPLES,
    "reward.answer_formats": _SAMPLES,
    "reward.failure_reward": _SAMPLES,
    "reward.overlong_buffer": _SAMPLES,
    "reward.reflection_pattern": _SAMPLES,
    "algorithm": "it would change the objective that the run descends",
    "learner.minibatches": _UPDATES,
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
    "price_book": "prices are dated, not changed: orchestrator cost prices",
}
"""And why."""


MAY_GROW = {"model.context": "what the run has sampled so far must still fit"}
"""Keys whose value may become larger, and why it may not become smaller."""


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of `key`, at least a larger one."""
    return key in MAY_GROW or _entry(key, CHANGEABLE) is not None


def why_fixed(key: str) -> str | None:
    """Why a resumed run keeps its value of `key`; None if it may change, or if there is no such key."""
    if key in MAY_GROW:
        return None
    entry = _entry(key, tuple(FIXED))
    return None if entry is None else FIXED[entry]


def _entry(key: str, table: tuple[str, ...]) -> str | None:
    return next((entry for entry in table if key == entry or key.startswith(f"{entry}.")), None)
