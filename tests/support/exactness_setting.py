"""Shared by the learner and the reference of learner_exactness.py: models, batches, hyper-parameters.

An `Objective` describes the objective in the papers' terms. `update_rule` and `learner_config`
translate it for the learner; plain_training.py reads it directly, so a mistake in the
translation also shows as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.importance import Correction
from orchestrator.training.learner.losses.objective import Objective as LearnerObjective
from orchestrator.training.learner.rows import AlgorithmSpec, GaeSpec
from orchestrator.training.learner.sharding.zero import OptimizerFactory, adamw
from orchestrator.training.models.routers import BIAS, find_routers
from orchestrator.training.records import BatchPart, Finish
from tests.fakes.rollout_batches import random_part
from tests.support.moe_families import VOCABULARY, build

OptimizerName = Literal["sgd", "adamw"]

STEPS = 10
OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "adamw")
LEARNING_RATES: dict[OptimizerName, float] = {"sgd": 0.1, "adamw": 3e-4}
TEMPERATURE = 0.9
MAX_NEW_TOKENS = 16
BALANCE = 0.01
WARMUP_STEPS = 2
CLOSEST = 2.5e-7
"""The frequency in the balance loss jumps when the k-th and the next score of a token swap places. A pair
closer than this, four units in the last place of a score of 0.5, can swap by rounding alone, and then no two
programs agree. The reference refuses to train on such a pair.
"""


@dataclass(frozen=True, slots=True)
class Objective:
    """The objective, and how the batch is generated. The defaults are the objective `token`."""

    loss: Literal["clipped", "cispo", "gspo", "gmpo"] = "clipped"
    aggregation: Literal["token", "sequence", "constant"] = "token"
    clip: tuple[float, float] = (0.2, 0.28)
    dual_clip: float | None = None
    kl: Literal["k1", "k2", "k3"] | None = None
    kl_coefficient: float = 0.0
    truncation: float | None = None
    """Off-policy weights above this are cut to it, or set to 0 with `masks_weights`; None: no weights."""
    smallest_weight: float = 0.0
    masks_weights: bool = False
    sequence_weights: bool = False
    """One weight for each rollout instead of one for each token."""
    kl_in_reward: bool = False
    reference_period: int | None = None
    entropy_coefficient: float = 0.0
    overlong_filtering: bool = False
    minibatches: int = 1
    epochs: int = 1
    weight_decay: float = 0.0
    masks: bool = False
    """Some tokens were not sampled by the model (observations of an environment),
    and some rollouts were aborted.
    """
    gap: float = 0.1
    """Standard deviation of the sampled log-probs around those of a uniform
    distribution; large for stale rollouts.
    """
    gae: tuple[float, float] | None = None
    """Gamma and lambda: a value head and an advantage for each token."""
    value_coefficient: float = 0.0
    value_clip: float | None = None
    replay: bool = False
    """Rollout routing replay: the batch records the experts that the sampler chose."""

    @property
    def drops_zero_advantages(self) -> bool:
        """Whether a rollout of zero advantage has no gradient."""
        return self.kl is None and self.entropy_coefficient == 0 and self.gae is None


_ALL = Objective(
    dual_clip=2.0, kl="k3", kl_coefficient=0.05, truncation=1.3, minibatches=3, weight_decay=0.1, masks=True,
    gap=0.5,
)  # fmt: skip
_GSPO = Objective(loss="gspo", aggregation="sequence", clip=(0.1, 0.05), minibatches=3, gap=0.5)
"""A clip range that affects some rollouts but not others."""
_GMPO = Objective(loss="gmpo", aggregation="sequence", clip=(0.4, 0.3), minibatches=3, gap=0.5)
_GAE = Objective(
    gae=(0.98, 0.9), value_coefficient=0.3, value_clip=0.02, minibatches=3, epochs=2, masks=True, gap=0.3
)
"""A clip that some values reach in the later updates of a step."""
OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "token": Objective(),
        "sequence": Objective(aggregation="sequence"),
        "constant": Objective(aggregation="constant"),
        "kl_k1": Objective(kl="k1", kl_coefficient=0.05),
        "kl_k2": Objective(kl="k2", kl_coefficient=0.05),
        "kl_k3": Objective(aggregation="sequence", kl="k3", kl_coefficient=0.05),
        "truncated_is": Objective(truncation=1.3, gap=0.5),
        "sequence_truncated_is": Objective(truncation=1.3, sequence_weights=True, gap=0.3),
        "masked_is": Objective(truncation=1.5, smallest_weight=0.6, masks_weights=True, gap=0.5),
        "sequence_masked_is": Objective(
            truncation=2.0, smallest_weight=0.5, masks_weights=True, sequence_weights=True, gap=0.3
        ),
        "decoupled": Objective(truncation=math.inf, minibatches=3, gap=0.3),
        "kl_in_reward": Objective(kl="k1", kl_coefficient=0.05, kl_in_reward=True),
        "reference_period": Objective(kl="k3", kl_coefficient=0.5, reference_period=2),
        "entropy": Objective(entropy_coefficient=0.01),
        "overlong_filtering": Objective(aggregation="sequence", overlong_filtering=True),
        "epochs": Objective(minibatches=3, epochs=2, truncation=1.3, gap=0.5),
        "minibatches": Objective(minibatches=3),
        "weight_decay": Objective(weight_decay=0.1),
        "masks": Objective(masks=True),
        "dual_clip": Objective(dual_clip=1.5, gap=1.0),
        "replay": Objective(replay=True),
        "cispo": Objective(loss="cispo", clip=(0.3, 0.5), minibatches=3, gap=0.5),
        "gae": _GAE,
        "gae_one_update": replace(_GAE, minibatches=1, epochs=1, masks=False, value_clip=None),
        "gspo": _GSPO,
        "gmpo": _GMPO,
        "all_token": _ALL,
        "all_sequence": replace(_ALL, aggregation="sequence"),
        "all_constant": replace(_ALL, aggregation="constant"),
        "all_gspo": replace(
            _ALL,
            loss="gspo",
            aggregation="sequence",
            clip=_GSPO.clip,
            truncation=None,
            epochs=2,
            overlong_filtering=True,
            entropy_coefficient=0.01,
        ),
        "all_gmpo": replace(_ALL, loss="gmpo", aggregation="sequence", truncation=None),
    }
)
"""Each ingredient alone, then all together under every aggregation. `token` is the
objective of the table of ranks.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how the learner is distributed over ranks, and its objective (a name in OBJECTIVES)."""

    model: str
    world_size: int
    expert_parallel_size: int
    zero_stage: int
    objective: str = "token"

    @property
    def minimised(self) -> Objective:
        return OBJECTIVES[self.objective]


@dataclass(frozen=True, slots=True)
class Training:
    """Losses and norms of each step, and the final parameters and persistent buffers."""

    losses: list[float]
    grad_norms: list[float]
    parameters: dict[str, Tensor]


def model_of(name: str, seed: int = 0) -> PreTrainedModel:
    """The model `name` in train mode. Selection biases start away from zero, so that the experts chosen for a
    token are not those with the largest scores. Routers start with ten times the usual weights, so that
    scores are far enough apart to be ranked: see `CLOSEST`.
    """
    model = build(name, seed)
    generator = torch.Generator().manual_seed(seed)
    for router in find_routers(model).values():
        router.get_parameter("weight").detach().mul_(10)
        bias = getattr(router, BIAS, None)
        if isinstance(bias, Tensor):
            bias.copy_(0.05 * torch.randn(bias.shape, generator=generator))
    return model.train()


def reference_of(name: str) -> PreTrainedModel:
    """The frozen model of the KL penalty: a different one, so that the penalty is not zero at the start."""
    return model_of(name, seed=1).eval().requires_grad_(False)


def learner_config(case: Case, optimizer_name: OptimizerName) -> LearnerConfig:
    """Micro-batches so small that a rank has several, and a norm so small that every step is clipped."""
    values: dict[str, Any] = {
        "world_size": case.world_size,
        "zero_stage": case.zero_stage,
        "expert_parallel_size": case.expert_parallel_size,
        "micro_batch_tokens": 60,
        "minibatches": case.minimised.minibatches,
        "epochs": case.minimised.epochs,
        "learning_rate": LEARNING_RATES[optimizer_name],
        "warmup_steps": WARMUP_STEPS,
        "schedule": "constant",
        "schedule_steps": None,
        "final_learning_rate": 0.0,
        "adam_betas": (0.9, 0.99),
        "adam_epsilon": 1e-6,
        "weight_decay": case.minimised.weight_decay,
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


def update_rule(objective: Objective = OBJECTIVES["token"]) -> AlgorithmSpec:
    """The objective as the learner applies it: GRPO's advantage at a temperature other than 1."""
    return AlgorithmSpec(
        advantages=ADVANTAGES.get("grpo" if objective.gae is None else "gae"),
        objective=LearnerObjective(
            policy=LOSSES.get(objective.loss),
            clip=ClipRange(*objective.clip, objective.dual_clip),
            correction=correction(objective),
            kl_coefficient=0.0 if objective.kl_in_reward else objective.kl_coefficient,
            kl_estimator=objective.kl or "k3",
            entropy_coefficient=objective.entropy_coefficient,
        ),
        aggregation=objective.aggregation,
        drop_uninformative=objective.drops_zero_advantages,
        temperature=TEMPERATURE,
        max_new_tokens=MAX_NEW_TOKENS,
        overlong_filtering=objective.overlong_filtering,
        reward_kl_coefficient=objective.kl_coefficient if objective.kl_in_reward else 0.0,
        reference_period=objective.reference_period,
        gae=None
        if objective.gae is None
        else GaeSpec(*objective.gae, objective.value_coefficient, objective.value_clip),
    )


def correction(objective: Objective) -> Correction | None:
    """The off-policy correction of the objective."""
    if objective.truncation is None:
        return None
    return Correction(
        objective.truncation, objective.smallest_weight, objective.masks_weights, objective.sequence_weights
    )


def batch(step: int, objective: Objective = OBJECTIVES["token"]) -> list[BatchPart]:
    """Two blocks of unequal rollouts: 9 groups of 4, 36 rows of 3 to 21 tokens."""
    parts = [
        random_part(2 * step, 5, 4, vocabulary=VOCABULARY, lengths=(1, 15)),
        random_part(2 * step + 1, 4, 4, vocabulary=VOCABULARY, lengths=(1, 6)),
    ]
    draw = np.random.default_rng(1000 + step)
    return [_changed(part, objective, draw) for part in parts]


def _changed(part: BatchPart, objective: Objective, draw: np.random.Generator) -> BatchPart:
    block = part.rollouts
    tokens = len(block.tokens)
    if objective.gap != Objective().gap:
        noise = objective.gap * draw.standard_normal(tokens)
        block = replace(block, logprobs=(-np.log(VOCABULARY) + noise).astype(np.float32))
    if objective.masks:
        masked = draw.integers(len(block))
        trainable = draw.random(tokens) < 0.7
        trainable[block.offsets[masked] : block.offsets[masked + 1]] = False
        block = replace(block, trainable=trainable)
    if objective.overlong_filtering:
        finish = np.where(draw.random(len(block)) < 0.3, Finish.LENGTH, Finish.STOP).astype(np.uint8)
        block = replace(block, finish=finish)
    if objective.replay:
        block = replace(
            block, routes=_routes(draw, tokens), prompt_routes=_routes(draw, len(block.prompt_tokens))
        )
        assert block.routes is not None
        block.routes[block.offsets[1:] - 1] = -1  # the sampler never read the last token of a rollout
    return replace(part, rollouts=block)


def _routes(draw: np.random.Generator, tokens: int) -> NDArray[np.int16]:
    """Two different experts of eight for each token, for the one router of `tiny_moe`: [tokens, 1, 2]."""
    return draw.permuted(np.tile(np.arange(8, dtype=np.int16), (tokens, 1)), axis=1)[:, None, :2]


def optimizer_factory(name: OptimizerName, config: LearnerConfig) -> OptimizerFactory:
    """The learner's own AdamW, or SGD."""
    return (
        adamw(config) if name == "adamw" else lambda groups: torch.optim.SGD(groups, lr=config.learning_rate)
    )
