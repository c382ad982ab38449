"""What the learner and the plain process of learner_exactness.py share: model, rule, batches, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.rows import AlgorithmSpec
from orchestrator.training.learner.sharding.zero import OptimizerFactory, adamw
from orchestrator.training.records import BatchPart
from tests.fakes.rollout_batches import random_part
from tests.support.moe_families import VOCABULARY

OptimizerName = Literal["sgd", "adamw"]

STEPS = 10
OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "adamw")
LEARNING_RATES: dict[OptimizerName, float] = {"sgd": 0.1, "adamw": 3e-4}
CLIP = (0.2, 0.28)
BALANCE = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """One combination."""

    model: str
    world_size: int
    expert_parallel_size: int
    zero_stage: int


@dataclass(frozen=True, slots=True)
class Training:
    """What ten steps gave: losses and norms a step, parameters and persistent buffers at the end."""

    losses: list[float]
    grad_norms: list[float]
    parameters: dict[str, Tensor]


def learner_config(case: Case, optimizer_name: OptimizerName) -> LearnerConfig:
    """Micro-batches so small that a rank has several; a norm so small that every step is clipped."""
    values: dict[str, Any] = {
        "world_size": case.world_size,
        "zero_stage": case.zero_stage,
        "expert_parallel_size": case.expert_parallel_size,
        "micro_batch_tokens": 60,
        "minibatches": 1,
        "learning_rate": LEARNING_RATES[optimizer_name],
        "warmup_steps": 2,
        "schedule": "constant",
        "final_learning_rate": 0.0,
        "adam_betas": (0.9, 0.99),
        "adam_epsilon": 1e-6,
        "weight_decay": 0.0,
        "max_grad_norm": 0.2,
        "router_bias_update_speed": 0.001,
        "sequence_balance_coefficient": BALANCE,
        "bucket_bytes": 4096,
        "activation_checkpointing": False,
        "offload": "none",
        "lora": {"rank": 0, "alpha": 16, "target_modules": ("all-linear",)},
        "threads": 1,
        "max_restarts": 0,
        "backend": "auto",
    }
    return LearnerConfig(**values)


def update_rule() -> AlgorithmSpec:
    """GRPO's advantage with a token-level clipped loss, at a temperature that is not 1."""
    return AlgorithmSpec(
        advantages=ADVANTAGES.get("grpo"),
        objective=Objective(LOSSES.get("clipped"), ClipRange(*CLIP), None, 0.0, "k3"),
        aggregation="token",
        drop_uninformative=True,
        temperature=0.9,
        max_new_tokens=16,
    )


def batch(step: int) -> list[BatchPart]:
    """Two blocks of unequal rollouts: 9 groups of 4, 36 rows of 3 to 21 tokens."""
    return [
        random_part(2 * step, 5, 4, vocabulary=VOCABULARY, lengths=(1, 15)),
        random_part(2 * step + 1, 4, 4, vocabulary=VOCABULARY, lengths=(1, 6)),
    ]


def optimizer_factory(name: OptimizerName, config: LearnerConfig) -> OptimizerFactory:
    """The learner's own AdamW, or SGD."""
    return (
        adamw(config) if name == "adamw" else lambda groups: torch.optim.SGD(groups, lr=config.learning_rate)
    )
