"""From configs to the three stages of the loop, on slots of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import WorkerLostError
from orchestrator.training.cluster.calls import all_or_none
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.learner_group import RayLearnerGroup
from orchestrator.training.cluster.parts import RunSpec
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.cluster.session import Slots, hold_slots
from orchestrator.training.cluster.workers import ManagedActor, RayRewardWorker, RayRolloutWorker
from orchestrator.training.rewards.pool import RewardPool
from orchestrator.training.rollouts.pool import RolloutPool
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import Role, UsageSink
from orchestrator.training.weights.choice import resolve_auto
from orchestrator.training.weights.config import WeightsConfig

A = TypeVar("A", bound=ManagedActor)


@dataclass(frozen=True, slots=True)
class ClusterStages:
    """The stages of the loop, ready to be driven."""

    rollouts: RolloutPool[RayRolloutWorker]
    rewards: RewardPool[RayRewardWorker]
    learner: RayLearnerGroup


@contextlib.asynccontextmanager
async def cluster_stages(
    cluster: ClusterConfig,
    placement: Placement,
    parts: RunSpec,
    sink: UsageSink,
    clock: Clock,
    on_lost: Callable[[WorkerLostError], None],
) -> AsyncGenerator[ClusterStages]:
    """Hold the slots, start all actors at once, wait until each is built; stop them all at the end.

    Raises ClusterError if the slots are not to be had, and whatever kept an actor from being built.
    """
    timeout = cluster.call_timeout_seconds
    async with hold_slots(cluster, placement, parts.run_id, parts.attempt, sink, clock) as slots:
        parts = replace(parts, weights=_settled(cluster, parts, placement, slots))
        learner = RayLearnerGroup(placement.of(Role.LEARNER), slots, parts, timeout)
        rollouts = [RayRolloutWorker(seat, slots, parts, timeout) for seat in placement.of(Role.ROLLOUT)]
        rewards = [RayRewardWorker(seat, slots, parts, timeout) for seat in placement.of(Role.REWARD)]
        rollout_pool = WorkerPool(rollouts, _replace, parts.rollout.max_restarts, on_lost)
        reward_pool = WorkerPool(rewards, _replace, parts.reward.max_restarts, on_lost)
        try:
            await all_or_none([learner.ready(), *(actor.ready() for actor in (*rollouts, *rewards))])
            yield ClusterStages(RolloutPool(rollout_pool), RewardPool(reward_pool), learner)
        finally:
            await asyncio.gather(rollout_pool.close(), reward_pool.close())
            learner.stop()
            for actor in (*rollouts, *rewards):
                actor.stop()


def _settled(cluster: ClusterConfig, parts: RunSpec, placement: Placement, slots: Slots) -> WeightsConfig:
    """The weights' config with what depends on the slots: where they are, and who shares a GPU."""
    first_rank = placement.of(Role.LEARNER)[:1]
    nodes = [slots.nodes[seat.slot] for seat in (*first_rank, *placement.of(Role.ROLLOUT))]
    return resolve_auto(parts.weights, nodes, cluster.own_gpus)


async def _replace(worker: A) -> A:
    """The same seat, a fresh actor."""
    await worker.restart()
    return worker
