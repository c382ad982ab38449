"""Builds the three stages of the loop on slots of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import WorkerLostError
from orchestrator.training.cluster.calls import all_or_none
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.learner_group import RayLearnerGroup
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.cluster.slots import OnWaiting, hold_slots
from orchestrator.training.cluster.workers import ManagedActor, RayRewardWorker, RayRolloutWorker
from orchestrator.training.rewards.pool import RewardPool
from orchestrator.training.rollouts.pool import RolloutPool
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import Role, UsageSink

A = TypeVar("A", bound=ManagedActor)


@dataclass(frozen=True, slots=True)
class ClusterStages:
    """The stages of the loop, ready for use."""

    rollouts: RolloutPool[RayRolloutWorker]
    rewards: RewardPool[RayRewardWorker]
    learner: RayLearnerGroup


@contextlib.asynccontextmanager
async def cluster_stages(
    cluster: ClusterConfig,
    placement: Placement,
    spec: RunSpec,
    sink: UsageSink,
    clock: Clock,
    on_lost: Callable[[WorkerLostError], None],
    on_waiting: OnWaiting,
) -> AsyncGenerator[ClusterStages]:
    """Reserve the slots, start all actors at once and wait until they are built; stop them at the end.

    A worker that is lost while it starts counts against the same budget as later and is replaced. Raises
    ClusterError if the slots cannot be reserved, and whatever prevents an actor from being built.
    """
    timeout = cluster.call_timeout_seconds
    async with hold_slots(cluster, placement, spec.run_id, spec.attempt, sink, clock, on_waiting) as slots:
        learner = RayLearnerGroup(placement, slots, spec, timeout)
        rollouts = [
            RayRolloutWorker(actor_slot, slots, spec, timeout) for actor_slot in placement.of(Role.ROLLOUT)
        ]
        rewards = [
            RayRewardWorker(actor_slot, slots, spec, timeout) for actor_slot in placement.of(Role.REWARD)
        ]
        rollout_pool = WorkerPool(rollouts, _replace, spec.rollout.max_restarts, on_lost)
        reward_pool = WorkerPool(rewards, _replace, spec.reward.max_restarts, on_lost)
        try:
            await all_or_none([learner.start(), rollout_pool.start(_ready), reward_pool.start(_ready)])
            yield ClusterStages(RolloutPool(rollout_pool), RewardPool(reward_pool), learner)
        finally:
            await asyncio.gather(rollout_pool.close(), reward_pool.close())
            learner.stop()
            for actor in (*rollouts, *rewards):
                actor.stop()


async def _ready(worker: ManagedActor) -> None:
    await worker.ready()


async def _replace(worker: A) -> A:
    """Restart the worker's process; the object stays the same."""
    await worker.restart()
    return worker
