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
from orchestrator.training.cluster.elastic_workers import ElasticWorkers
from orchestrator.training.cluster.learner_group import RayLearnerGroup
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.cluster.slots import hold_slots
from orchestrator.training.cluster.workers import ManagedActor, RayRewardWorker, RayRolloutWorker
from orchestrator.training.events import TrainingEvent, WaitKind, WorkerLost
from orchestrator.training.rewards.pool import RewardPool
from orchestrator.training.rollouts.pool import RolloutPool, worker_capacity
from orchestrator.training.supervision.elastic import ElasticPool
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import Role, UsageSink
from orchestrator.training.waiting import LEARNER, Waits

A = TypeVar("A", bound=ManagedActor)


@dataclass(frozen=True, slots=True)
class ClusterStages:
    """The stages of the loop, ready for use."""

    rollouts: RolloutPool[RayRolloutWorker]
    rewards: RewardPool[RayRewardWorker]
    learner: RayLearnerGroup
    elastic: ElasticPool[RayRolloutWorker]


@contextlib.asynccontextmanager
async def cluster_stages(
    cluster: ClusterConfig,
    placement: Placement,
    spec: RunSpec,
    sink: UsageSink,
    clock: Clock,
    on_event: Callable[[TrainingEvent], None],
    waits: Waits,
) -> AsyncGenerator[ClusterStages]:
    """Reserve the slots, start all actors at once and wait until they are built; stop them at the end. It
    does not wait for elastic rollout workers.

    A worker that is lost while it starts counts against the same budget as later and is replaced. Raises
    ClusterError if the slots cannot be reserved, and whatever prevents an actor from being built.
    """
    timeout = cluster.call_timeout_seconds

    def on_lost(lost: WorkerLostError) -> None:
        on_event(WorkerLost(lost.worker, lost.reason))

    async with hold_slots(cluster, placement, spec.run_id, spec.attempt, sink, clock, waits) as slots:
        learner = RayLearnerGroup(placement, slots, spec, timeout)
        rollouts = [RayRolloutWorker(each, slots, spec, timeout) for each in placement.of(Role.ROLLOUT)]
        rewards = [RayRewardWorker(each, slots, spec, timeout) for each in placement.of(Role.REWARD)]
        actors = _Actors(waits)
        rollout_pool = WorkerPool(
            rollouts,
            actors.replace,
            spec.rollout.max_restarts,
            on_lost,
            capacity=worker_capacity(spec.rollout),
        )
        reward_pool = WorkerPool(rewards, actors.replace, spec.reward.max_restarts, on_lost)
        rollout_stage = RolloutPool(rollout_pool, waits, push=spec.rollout.on_new_weights != "finish")
        hiring = ElasticWorkers(
            cluster,
            placement,
            spec,
            sink,
            clock,
            waits,
            rollout_pool,
            rollout_stage.catch_up,
            learner.only_node,
        )
        elastic = ElasticPool(rollout_pool, hiring.hire, spec.rollout.max_restarts, on_event, clock)
        try:
            elastic.grow(placement.elastic_workers, "rollout.workers asks for it")
            await all_or_none(
                [
                    actors.start(learner),
                    rollout_pool.start(actors.ready),
                    reward_pool.start(actors.ready),
                ]
            )
            yield ClusterStages(rollout_stage, RewardPool(reward_pool, waits), learner, elastic)
        finally:
            await elastic.close()
            await asyncio.gather(rollout_pool.close(), reward_pool.close())
            learner.stop()
            for actor in (*rollouts, *rewards):
                actor.stop()


class _Actors:
    """Starts actors, and notices those that take long."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    async def start(self, learner: RayLearnerGroup) -> None:
        with self._waits.on(WaitKind.START, LEARNER):
            await learner.start()

    async def ready(self, worker: ManagedActor) -> None:
        with self._waits.on(WaitKind.START, worker.name):
            await worker.ready()

    async def replace(self, worker: A) -> A:
        """Restart the worker's process; the object stays the same."""
        with self._waits.on(WaitKind.START, worker.name):
            await worker.restart()
        return worker
