"""The settings of both sides of `vs_trl.py`: what they share, the workloads, and the layout of our side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.config.compose import compose

SAME_FOR_BOTH = (
    "algorithm=grpo_token",
    "rollout.top_p=1.0",
    "learner.minibatches=1",
    "learner.warmup_steps=0",
    "learner.schedule=constant",
    "learner.weight_decay=0.0",
    "learner.router_bias_update_speed=0.0",
    "reward.overlong_buffer=0",
)
"""Settings in which the demo's stage may differ, or that TRL does not support."""
WORKLOADS: Mapping[str, Sequence[str]] = {
    "demo": ("rollout.prompts_per_step=64", "rollout.group_size=8"),
    "smollm2_135m": (
        "task=chain_sum",
        "task.template='What is {expression}? Think step by step.'",
        "rollout.prompts_per_step=8",
        "rollout.group_size=8",
        "rollout.max_new_tokens=128",
        "rollout.max_batch_rows=32",
        "model.context=256",
        "learner.learning_rate=1e-6",
        # No group is left out, although most answers are wrong: both sides train on every rollout.
        "algorithm.drop_uninformative=false",
    ),
}
"""The workloads."""
NOT_TIMED = ("evaluation.every=0", "checkpoint.every=0", "tracking=none", "purpose=debug")
"""TRL does not evaluate, save or report to a server here."""
LAYOUT = (
    "rollout.workers=2",
    "rollout.threads=1",
    "learner.world_size=2",
    "learner.threads=1",
    "learner.micro_batch_tokens=1536",
)
"""Our side on two cores: a rollout worker and a learner rank on each, with
micro-batches that fit their caches.
"""


def stage_overrides(job: str) -> tuple[str, ...]:
    """The overrides that the demo passes to its stage that runs `job`."""
    return next(tuple(stage.overrides) for stage in compose("r1_demo").stages if stage.job == job)
