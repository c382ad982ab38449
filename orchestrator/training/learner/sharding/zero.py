"""DeepSpeed ZeRO behind a small interface: accumulate weighted losses, then make one step. Results are exact
at every stage and number of ranks.

All differences between the stages are handled in this module:

| stage | gradients of a step            | global gradient norm and clipping                      |
| ----- | ------------------------------ | ------------------------------------------------------ |
| 0     | reduced with the last backward | ours: DeepSpeed reports none, and its own leaves out   |
|       |                                | the experts of other ranks                             |
| 1     | reduced with the last backward | DeepSpeed's, inside its step                           |
| 2, 3  | reduced with every backward    | DeepSpeed's, inside its step                           |

DeepSpeed averages gradients over ranks. The weights of our losses already refer to the whole batch and need
the sum, so the loss is multiplied by the number of ranks first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from orchestrator.errors import ConfigError
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.sharding.deepspeed_import import import_deepspeed
from orchestrator.training.learner.sharding.expert_parallel import (
    ExpertSharding,
    expert_parallel_section,
    is_expert,
)

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
"""Parameter groups to a torch optimizer."""


def adamw(config: LearnerConfig) -> OptimizerFactory:
    """The config's AdamW (https://arxiv.org/abs/1711.05101) with one fused kernel per tensor."""

    def build(groups: Iterable[dict[str, Any]]) -> Optimizer:
        return AdamW(
            groups, lr=config.learning_rate, betas=config.adam_betas, eps=config.adam_epsilon, fused=True
        )

    return build


class ZeroEngine:
    """A model whose parameters, gradients and optimizer state are managed by DeepSpeed. Every method is
    collective: all ranks must call it with the same arguments.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearnerConfig,
        device: torch.device,
        build_optimizer: OptimizerFactory,
    ) -> None:
        _refuse_what_is_not_exact(config, model)
        self._max_grad_norm = config.max_grad_norm
        self.stage = config.zero_stage
        self._world_size = dist.get_world_size()
        self._deepspeed = import_deepspeed()

        def optimizer(_: object) -> Optimizer:
            # Called after the experts have been distributed, because that replaces parameters of the model.
            return build_optimizer(_parameter_groups(model, config.weight_decay))

        engine, *_ = self._deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(config, model, device)
        )
        self.engine: Any = engine
        self.engine.train()
        self.sharding = ExpertSharding(model)

    @property
    def module(self) -> PreTrainedModel:
        """The model. At stage 3 its parameters are empty until gathered."""
        return self.engine.module

    def forward(self, **inputs: Any) -> Any:  # noqa: ANN401 - whatever the model takes and gives
        """The model's forward pass."""
        return self.engine(**inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's `loss`, a scalar; the step's gradient is the sum over micro-batches
        and ranks. `last` marks the step's last micro-batch, whose number must be the same on all ranks.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip the gradient to `max_grad_norm`, update the weights and clear the gradient. Returns the
        gradient's global L2 norm before clipping, which is the same on all ranks.

        If the norm is not finite, no rank updates anything, and that norm is returned.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage == 0:
            return self._step_without_zero()
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.inf

    def _step_without_zero(self) -> float:
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        total = self._grad_norm(parameters)
        torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, total)
        norm = float(total)
        if math.isfinite(norm):
            self.engine.step()
        else:
            self.engine.zero_grad()
        return norm

    def _grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The global L2 norm, which includes the experts of other ranks and counts each expert once."""
        grads = [parameter.grad for parameter in parameters if not is_expert(parameter)]
        expert_grads = [parameter.grad for parameter in parameters if is_expert(parameter)]
        squares = _norm(grads) ** 2
        if self.sharding.group is not None:
            experts = (_norm(expert_grads) ** 2).to(self.engine.device)
            dist.all_reduce(experts, group=self.sharding.group)
            squares = squares + experts
        return squares.sqrt()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Gather these parameters on every rank inside the context (stage 3). They must not be changed."""
        return self._deepspeed.zero.GatheredParameters(parameters)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self.engine.destroy()


def deepspeed_config(config: LearnerConfig, model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
    """The DeepSpeed config of a learner. Its batch sizes have no meaning, because our
    micro-batches have token budgets.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Elements; DeepSpeed allocates it whole, and asks for an even number.
    bucket = max(1 << 16, min(parameters + parameters % 2, 200_000_000))
    half = next(model.parameters()).dtype == torch.bfloat16
    # Keep our AdamW if the optimizer is offloaded: torch's fused one needs no compiler, while DeepSpeed's own
    # is compiled at its first use.
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": device.type == "cuda"}}
    experts = config.expert_parallel_size
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm if config.zero_stage > 0 else 0.0,
        "bf16": {"enabled": half, "check_grad_overflow": True} if half else {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": device.type == "cuda" and config.zero_stage >= 2,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            # Small parameters are kept on every rank, but at most 1 % of the model, so that a small model is
            # partitioned too.
            "stage3_param_persistence_threshold": min(100_000, parameters // 100),
            **(offload if config.offload == "optimizer" else {}),
        },
        "expert_parallel": expert_parallel_section(model, experts, grouped=device.type == "cuda" and half)
        if experts > 1
        else {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _norm(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None])


def _refuse_what_is_not_exact(config: LearnerConfig, model: nn.Module) -> None:
    if config.zero_stage == 0 and next(model.parameters()).dtype == torch.bfloat16:
        hint = "a bfloat16 model keeps its float32 master weights in ZeRO's optimizer"
        raise ConfigError("learner.zero_stage", "0", "1, 2 or 3", hint)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay applies only to matrices, not to norms, biases and other vectors. Distributed experts have
    their own groups, because ZeRO partitions them among fewer ranks.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"name": "all", "params": parameters, "weight_decay": 0.0}]
    if weight_decay > 0:
        # At stage 3 a partitioned parameter has no dimensions left.
        matrices = [each for each in parameters if len(getattr(each, "ds_shape", each.shape)) >= 2]
        vectors = [each for each in parameters if len(getattr(each, "ds_shape", each.shape)) < 2]
        groups = [
            {"name": "matrices", "params": matrices, "weight_decay": weight_decay},
            {"name": "vectors", "params": vectors, "weight_decay": 0.0},
        ]
    if any(is_expert(parameter) for parameter in parameters):
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

        groups = split_params_into_different_moe_groups_for_optimizer(groups)
    return groups
