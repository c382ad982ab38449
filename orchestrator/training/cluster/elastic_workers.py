"""Elastic rollout workers on a cluster: each has a placement group of its own, so that its slot can be
reserved when the cluster has room, and is given back when the worker leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.clock import Clock
from orchestrator.errors import WorkerLostError
from orchestrator.training.cluster.calls import NODE_DIED, death_reason
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.cluster.slots import (
    LOOK_EVERY_SECONDS,
    Slots,
    free_resources,
    leased_slots,
)
from orchestrator.training.cluster.workers import RayRolloutWorker
from orchestrator.training.supervision.elastic import Tell, WorkerState
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import UsageSink
from orchestrator.training.waiting import Waits

ON_ONE_NODE = 0.001
"""How much of a node's own resource a slot takes that must be on that node. Ray has 1 of it."""


@dataclass(frozen=True, slots=True)
class ElasticWorkers:
    """Brings up elastic workers of one run."""

    cluster: ClusterConfig
    placement: Placement
    spec: RunSpec
    sink: UsageSink
    clock: Clock
    waits: Waits
    pool: WorkerPool[RayRolloutWorker]
    catch_up: Callable[[RayRolloutWorker], Awaitable[None]]
    only_node: Callable[[], str | None]
    """The id of the node that the worker must be on to read weights; None: any node."""

    @contextlib.asynccontextmanager
    async def hire(self, index: int, incarnation: int, tell: Tell) -> AsyncGenerator[RayRolloutWorker]:
        """See `supervision.elastic.Hire`. Waits for a slot without a limit."""
        placement = self.placement.elastic(index)
        (actor_slot,) = placement.actor_slots
        group = placement_group([self._bundle(placement)], strategy="PACK")
        try:
            await _reserved(group, actor_slot.name, tell)
            tell(WorkerState.STARTING, "")
            async with leased_slots(
                group,
                self.cluster,
                placement,
                self.spec.run_id,
                self.spec.attempt,
                self.sink,
                self.clock,
                self.waits,
            ) as slots:
                timeout = self.cluster.call_timeout_seconds
                worker = RayRolloutWorker(actor_slot, slots, self.spec, timeout, incarnation)
                try:
                    await worker.ready()
                    await self.catch_up(worker)
                    async with _watched(group, slots, worker, self.pool):
                        yield worker
                finally:
                    await worker.retire()
        finally:
            remove_placement_group(group)

    def _bundle(self, placement: Placement) -> dict[str, float]:
        bundle, node_id = placement.slots[0].bundle(), self.only_node()
        for node in ray.nodes():
            if node["NodeID"] == node_id:
                bundle[f"node:{node['NodeManagerAddress']}"] = ON_ONE_NODE
        return bundle


async def _reserved(group: PlacementGroup, name: str, tell: Tell) -> None:
    """Wait until the group's slot is reserved. Raises WorkerLostError if Ray cannot say whether it is."""
    ready = asyncio.wrap_future(group.ready().future())
    told = ""
    try:
        while not ready.done():
            missing = f"a slot with {group.bundle_specs[0]}: {free_resources()}"
            if missing != told:
                tell(WorkerState.WAITING, missing)
                told = missing
            await asyncio.wait({ready}, timeout=LOOK_EVERY_SECONDS)
        ready.result()
    except RayError as error:  # for example, the node died in this moment
        raise WorkerLostError(name, f"its slot was lost: {death_reason(error)}", node_died=True) from error
    finally:
        ready.cancel()


@contextlib.asynccontextmanager
async def _watched(
    group: PlacementGroup, slots: Slots, worker: RayRolloutWorker, pool: WorkerPool[RayRolloutWorker]
) -> AsyncGenerator[None]:
    """While the body runs, notice that the worker's node has died, also if it has nothing to do."""
    (node,) = slots.nodes()

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            table = await asyncio.to_thread(placement_group_table, group)
            if table["state"] != "CREATED" or table["bundles_to_node_id"][0] != node:
                pool.report_lost(worker, WorkerLostError(worker.name, NODE_DIED, node_died=True))

    watching = slots.start(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
