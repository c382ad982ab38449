"""The configuration of the learner."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings

EXPERT_PARALLEL_FAMILIES = ("deepseek_v2", "deepseek_v3", "granitemoe", "mixtral", "qwen3_moe")
"""The `model_type` values (in config.json) whose expert parallelism has been verified to be exact.
Other families are refused.
"""

Decay = Annotated[float, Field(ge=0, lt=1)]


class LoraSettings(Settings):
    """Train small matrices beside frozen weights (LoRA), or all weights."""

    rank: int = Field(ge=0)
    """Rank of the adapters' matrices; 0: no adapters, all weights are trained."""
    alpha: float = Field(gt=0)
    """The output of an adapter is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] = Field(min_length=1)
    """Names of the linear layers that get an adapter, such as `q_proj`; `[all-linear]`: all but
    the output head.
    """


class LearnerConfig(Settings):
    """The `learner` group: DeepSpeed ZeRO over `world_size` ranks."""

    world_size: int = Field(ge=1)
    """Number of learner ranks."""
    zero_stage: Literal[0, 1, 2, 3]
    """What is partitioned over the ranks: 0 nothing, 1 the optimizer state, 2 also
    gradients, 3 also parameters.
    """
    expert_parallel_size: int = Field(ge=1)
    """Number of ranks over which the experts of a layer are distributed; 1: each rank has all experts."""
    micro_batch_tokens: int = Field(ge=1)
    """Token budget (prompt and response) of one forward and backward pass on one rank."""
    minibatches: int = Field(ge=1)
    """Number of optimizer updates per pass over the batch of a step, which is split into this many."""
    epochs: int = Field(ge=1)
    """Number of passes over the batch of a step, each of `minibatches` updates. From the second pass on, the
    ratios are still against the learner at the beginning of the step, or against the rollout engine
    (`algorithm.off_policy.correction: none`).
    """
    learning_rate: float = Field(gt=0)
    """Learning rate of AdamW after the warm-up."""
    warmup_steps: int = Field(ge=0)
    """Steps during which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"]
    """Shape of the schedule after the warm-up, which ends at `final_learning_rate`."""
    schedule_steps: int | None = Field(ge=1)
    """Length of the schedule in steps, warm-up included; afterwards the rate stays at `final_learning_rate`.
    null: the run's `steps`. A run that is resumed with other `steps` keeps the length that it began with.
    """
    final_learning_rate: float = Field(ge=0)
    """The learning rate at the end of `schedule`; no effect if it is constant."""
    adam_betas: tuple[Decay, Decay]
    """AdamW's decay rates for the averages of the gradient and of its square."""
    adam_epsilon: float = Field(gt=0)
    """AdamW's epsilon, which prevents a division by zero."""
    weight_decay: float = Field(ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(gt=0)
    """The global gradient norm is clipped to this."""
    router_bias_update_speed: float = Field(ge=0)
    """DeepSeek-V3's auxiliary-loss-free balancing: how much an update changes each expert's selection bias
    (gamma); 0: not at all.
    """
    sequence_balance_coefficient: float = Field(ge=0)
    """Coefficient (alpha) of DeepSeek-V3's sequence-wise auxiliary loss, which prevents single rollouts from
    using only a few experts; 0: no such loss. DeepSeek-V3 used 1e-4.
    """
    bucket_bytes: int = Field(ge=64)
    """Size of the buckets in which weights are published."""
    activation_checkpointing: bool
    """Keep only each layer's input for the backward pass and recompute the rest. Needs less memory, but about
    a third more computation.
    """
    offload: Literal["none", "optimizer"]
    """ZeRO-Offload: `optimizer` keeps the float32 weights and AdamW's state in host memory
    and updates them there.
    """
    lora: LoraSettings
    threads: int = Field(ge=0)
    """CPU threads per rank; 0: torch's default."""
    max_restarts: int = Field(ge=0)
    """How often the ranks may be rebuilt from the last checkpoint during the run after the loss of a rank."""
    backend: Literal["auto", "gloo", "nccl"]
    """`auto`: nccl on GPUs, gloo on CPUs."""

    @model_validator(mode="after")
    def _offload_has_zero(self) -> Self:
        if self.offload != "none" and self.zero_stage == 0:
            allowed, hint = (
                "none, or zero_stage 1, 2 or 3",
                "at stage 0 ZeRO keeps no state that could be offloaded",
            )
            raise _refused("offload", self.offload, allowed, hint)
        return self

    @model_validator(mode="after")
    def _adapters_have_whole_experts(self) -> Self:
        if self.lora.rank > 0 and self.expert_parallel_size > 1:
            hint = "gradients of LoRA with expert parallelism were not shown to be exact"
            raise _refused(
                "expert_parallel_size", str(self.expert_parallel_size), "1 with lora.rank > 0", hint
            )
        return self

    @model_validator(mode="after")
    def _schedule_falls(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            allowed, hint = f"at most {self.learning_rate}", "the schedule falls from learning_rate"
            raise _refused("final_learning_rate", str(self.final_learning_rate), allowed, hint)
        return self


def _refused(key: str, value: str, allowed: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError(
        "refused",
        "{key}: got {value}, allowed: {allowed} ({hint})",
        {"key": key, "value": value, "allowed": allowed, "hint": hint},
    )
