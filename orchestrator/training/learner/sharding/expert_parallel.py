"""Distributes experts over ranks with DeepSpeed's AutoEP, and maps the result back to the
names of transformers.

AutoEP replaces each mixture-of-experts block: a rank keeps E / size of its E experts, and tokens travel to
the ranks of their experts and back (all-to-all), and none is dropped. Ranks that hold the same experts are
data parallel for them. AutoEP uses its own names and shapes:

    AutoEP, on rank r of `size`                      transformers
    mlp.router.gate.weight        [E, H]             mlp.gate.weight            [E, H]
    mlp.experts.w1 (gate)         [E / size, F, H]   mlp.experts.gate_up_proj   [E, 2 F, H], first half
    mlp.experts.w3 (up)           [E / size, F, H]   mlp.experts.gate_up_proj   [E, 2 F, H], second half
    mlp.experts.w2 (down)         [E / size, H, F]   mlp.experts.down_proj      [E, H, F]

`ExpertSharding` maps every element to its place in the tensors of transformers, so checkpoints and published
weights do not depend on the number of ranks that share the experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from orchestrator.errors import ConfigError
from orchestrator.training.learner.config import EXPERT_PARALLEL_FAMILIES
from orchestrator.training.models.routers import number_of_experts

ROUTERS: Mapping[str, str] = MappingProxyType({"granitemoe": "router"})
"""The name of a block's router in transformers if it is not "gate"."""


@dataclass(frozen=True, slots=True)
class LocalRange:
    """Elements [local, local + count) of a parameter on this rank are elements [start, start + count) of the
    tensor `name` of transformers, which has `shape`; all in row-major order.
    """

    local: int
    count: int
    name: str
    shape: tuple[int, ...]
    start: int


def expert_parallel_section(model: PreTrainedModel, size: int, grouped: bool) -> dict[str, Any]:
    """The `expert_parallel` section of a DeepSpeed config. `grouped`: one kernel for all experts of a rank.

    Raises ConfigError for a family that has not been verified to be exact, and if `size` does not divide
    the number of experts.
    """
    key, kind = "learner.expert_parallel_size", model.config.model_type
    if kind not in EXPERT_PARALLEL_FAMILIES:
        hint = f"{kind} has no experts, or its expert parallelism has not been verified to be exact"
        raise ConfigError(key, str(size), f"1, or a model of {', '.join(EXPERT_PARALLEL_FAMILIES)}", hint)
    if dist.get_world_size() % size:
        raise ConfigError(
            key, str(size), f"a divisor of {dist.get_world_size()}", "it must divide learner.world_size"
        )
    experts = number_of_experts(model)
    if experts % size:
        raise ConfigError(
            key, str(size), f"a divisor of {experts}", "all ranks must hold the same number of experts"
        )
    return {
        "enabled": True,
        "autoep_size": size,
        "use_grouped_mm": grouped,
        "preset_model": _preset(kind),
    }


def _preset(kind: str) -> str:
    """The name of AutoEP's preset for the family. Presets that are missing or broken in
    DeepSpeed are replaced by ours.

    DeepSpeed 0.19.8 has none for Granite-MoE. Its presets for Mixtral and Qwen3-MoE redirect the recording of
    router logits through a registry whose `get` takes one argument in transformers 5.23, and so raise a
    TypeError. Ours do not record logits, which the learner does not need.
    """
    from deepspeed.module_inject.auto_ep_config import PRESET_MODELS, MoEModelPreset

    name = f"orchestrator_{kind}"
    if kind in ("mixtral", "qwen3_moe"):
        PRESET_MODELS[name] = replace(PRESET_MODELS[kind], preset_adapter="default")
        return name
    if kind == "granitemoe":
        PRESET_MODELS[name] = MoEModelPreset(
            moe_layer_pattern=r"model\.layers\.\d+\.block_sparse_moe",
            router_pattern="router",
            experts_pattern="experts",
            expert_storage="fused_3d",
            expert_w1="gate_up_proj",
            expert_w2="down_proj",
            expert_w3=None,
            num_experts_attr="num_local_experts",
            top_k_attr="num_experts_per_tok",
            # The softmax over the chosen logits equals the softmax over all, normalised over the chosen ones.
            score_func="softmax",
            score_apply="post",
            route_norm=True,
            gate_bias=False,
        )
        return name
    return kind


def is_expert(parameter: nn.Parameter) -> bool:
    """Whether the parameter holds only some of a block's experts, while other ranks hold the rest."""
    return not getattr(parameter, "allreduce", True)


def replica(parameter: nn.Parameter) -> tuple[int, int]:
    """This rank's index among the ranks that hold the same elements of the parameter, and the
    number of those ranks.
    """
    if not is_expert(parameter):
        return dist.get_rank(), dist.get_world_size()
    from deepspeed.utils import groups as known

    groups: Any = known
    name: Any = getattr(parameter, "group_name")  # noqa: B009 - DeepSpeed's mark, unknown to the type
    group = groups._get_expert_data_parallel_group(name)
    return dist.get_rank(group), dist.get_world_size(group)


class ExpertSharding:
    """Maps the tensors of a model on this rank to those of transformers. Without
    AutoEP it is the identity.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        router = ROUTERS.get(model.config.model_type, "gate")
        self.group: dist.ProcessGroup | None = None
        """The ranks among which the experts of a block are divided; None without AutoEP."""
        self._renamed: dict[str, str] = {}
        self._blocks: dict[str, Any] = {}
        for name, module in model.named_modules():
            if getattr(module, "_is_autoep_layer", False):
                self._blocks[name] = module
                self.group = self._blocks[name].ep_group
                self._renamed[f"{name}.router.gate"] = f"{name}.{router}"
                self._renamed[f"{name}.router"] = f"{name}.{router}"

    def name(self, name: str) -> str:
        """The name in transformers of a tensor that every rank holds completely."""
        module, _, tensor = name.rpartition(".")
        return f"{self._renamed.get(module, module)}.{tensor}" if module else name

    def target(self, name: str) -> str:
        """The tensor of transformers that the parameter `name` equals or belongs to."""
        block, experts, weight = name.rpartition(".experts.")
        if not experts or block not in self._blocks:
            return self.name(name)
        return f"{block}.experts.{'down_proj' if weight == 'w2' else 'gate_up_proj'}"

    def ranges(self, name: str, shape: tuple[int, ...], rank: int | None = None) -> list[LocalRange]:
        """The ranges of transformers' tensors that the parameter `name` covers, which has `shape` on this
        rank or on `rank` of its expert group.
        """
        block, experts, weight = name.rpartition(".experts.")
        target, count = self.target(name), math.prod(shape)
        if not experts or block not in self._blocks:
            return [LocalRange(0, count, target, shape, 0)]
        layer = self._blocks[block]
        held, rows, columns = shape
        first, size = (layer.ep_rank if rank is None else rank) * held, rows * columns
        if weight == "w2":
            return [LocalRange(0, count, target, (layer.num_experts, rows, columns), first * size)]
        whole, half = (layer.num_experts, 2 * rows, columns), 0 if weight == "w1" else 1
        return [
            LocalRange(index * size, size, target, whole, (2 * (first + index) + half) * size)
            for index in range(held)
        ]
