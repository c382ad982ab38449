"""Model FLOPs utilisation of a step that was made: the operations that its tokens need over what the
accelerators could have done meanwhile.

As PaLM defines it (https://arxiv.org/abs/2204.02311, appendix B): what is computed a second time to save
memory, and everything beside the model's own matrix products, is no work, it only takes time. So are a
reference model's log-probs and positions of padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.capacity.accelerators import accelerator_of
from orchestrator.capacity.flops import BACKWARD, work_flops
from orchestrator.capacity.job import model_shape, samples_from_the_model
from orchestrator.capacity.shape import ModelShape
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.training.cluster.placement import Placement, plan_placement
from orchestrator.training.records import StepReport
from orchestrator.training.usage import Role

STAGE_SECONDS = {Role.LEARNER: "time/learn", Role.ROLLOUT: "time/generate"}
"""The metric whose seconds a role's FLOPs are divided by."""


@dataclass(frozen=True, slots=True)
class Utilisation:
    """What a run's roles could do: `peaks` are FLOPs a second of all accelerators of a role together, without
    the roles that compute nothing.
    """

    shape: ModelShape
    peaks: Mapping[Role, float]

    def metrics(self, report: StepReport) -> dict[str, float]:
        """`mfu/learner` and `mfu/rollout`; without the roles that did nothing in this step, or took no time.

        Two rollout workers with 10^12 FLOP/s each that sample for 2 s what takes 10^12 operations: 0.25.
        """
        works = {
            Role.LEARNER: (1 + BACKWARD) * work_flops(self.shape, report.trained),
            Role.ROLLOUT: work_flops(self.shape, report.sampled),
        }
        found: dict[str, float] = {}
        for role, peak in self.peaks.items():
            seconds = report.metrics.get(STAGE_SECONDS[role], 0.0)
            if works[role] and seconds > 0:
                found[f"mfu/{role.value}"] = works[role] / (seconds * peak)
        return found


def utilisation_of(config: RunConfig) -> Utilisation | None:
    """What measures the run; None where a datasheet says nothing of its accelerators (CPU slots, an SKU that
    is not in the table), or the planner knows no shape of its model.
    """
    try:
        accelerator, shape = accelerator_of(config.cluster.sku), model_shape(config.model)
    except ConfigError:
        return None
    peak = accelerator.flops.get(config.model.dtype)
    if not accelerator.published or peak is None:
        return None
    placement = plan_placement(
        config.cluster, config.rollout.workers, config.reward.workers, config.learner.world_size
    )
    roles = [Role.LEARNER, Role.ROLLOUT] if samples_from_the_model(config) else [Role.LEARNER]
    return Utilisation(shape, {role: peak * accelerators_of(placement, role) for role in roles})


def accelerators_of(placement: Placement, role: Role) -> int:
    """The accelerators that a role's actors work on. One that it shares with another role is whole: each can
    use all of it while the other waits.
    """
    shares: dict[int, float] = {}
    for actor_slot in placement.of(role):
        shares[actor_slot.slot] = shares.get(actor_slot.slot, 0.0) + actor_slot.share.gpus
    return sum(max(1, math.ceil(share - 1e-9)) for share in shares.values())
