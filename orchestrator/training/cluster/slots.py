"""The slots that a run holds on the cluster: reserved as a placement group, leased in the
ledger, and watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.clock import Clock
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.placement import ActorSlot, Placement
from orchestrator.training.cluster.session import ClusterError
from orchestrator.training.events import WaitKind
from orchestrator.training.usage import (
    CloseReason,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    UsageSink,
    new_event_id,
)
from orchestrator.training.waiting import Waits

logger = logging.getLogger(__name__)
T = TypeVar("T")
CLUSTER = "the cluster"
LOOK_EVERY_SECONDS = 5.0
"""How often the state of the placement group is looked up."""
QUIET_SECONDS = 5.0
"""How long the first reservation may take before the run says that it is waiting."""


class Slots:
    """The slots of a run. `leases[i]` are the lease ids of slot i, one for each accelerator.

    If a node is lost, Ray reserves its slots again on another node, as soon as one has room. `watch` notices
    that slots are missing; calls made through `while_held` fail when they stay missing for longer than
    `cluster.startup_timeout_seconds`.
    """

    def __init__(
        self,
        group: PlacementGroup,
        leases: tuple[tuple[str, ...], ...],
        config: ClusterConfig,
        waits: Waits,
    ) -> None:
        self.leases = leases
        self._group, self._config, self._waits = group, config, waits
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def are_local(self) -> bool:
        """Whether Ray was started on this machine, for this run."""
        return self._config.address is None

    def nodes(self) -> tuple[str, ...]:
        """The id of the node that each slot is on now."""
        nodes: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        return tuple(nodes[index] for index in range(len(self.leases)))

    def options(self, actor_slot: ActorSlot, incarnation: int) -> dict[str, Any]:
        """Ray options that place an actor on its slot.

        A crashed actor is replaced by its pool, never by Ray. Its name, `<run>/<attempt>-<group>/<actor>/
        <incarnation>`, is unique, so that Ray's own events can be compared with the ledger.
        """
        held = self.leases[actor_slot.slot][0].rpartition("/")[0]
        options: dict[str, Any] = {
            "name": f"{held}/{actor_slot.name}/{incarnation}",
            "num_cpus": actor_slot.share.cpus,
            "num_gpus": actor_slot.share.gpus,
            "max_restarts": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, actor_slot.slot),
        }
        if actor_slot.interpreter is not None:
            options["runtime_env"] = {"py_executable": actor_slot.interpreter}
        return options

    async def while_held(self, call: Coroutine[Any, Any, T]) -> T:
        """Await `call`. Raises ClusterError if the run gives up on missing slots in the meantime."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait({task, self._given_up}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._given_up.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background. If it fails, calls through `while_held` fail with its error."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if not self._given_up.done():
            self._given_up.set_exception(error)
            self._given_up.exception()  # marked as retrieved, in case no call is waiting for a slot

    async def watch(self) -> None:
        """Look up the placement group until it is given up. Runs beside the body of `hold_slots`."""
        loop, missing_since = asyncio.get_running_loop(), None
        with contextlib.ExitStack() as waiting:
            while not self._given_up.done():
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                table = await asyncio.to_thread(placement_group_table, self._group)
                if table["state"] == "CREATED":
                    waiting.close()
                    missing_since = None
                    continue
                since = loop.time() if missing_since is None else missing_since
                reason = self._reason_to_give_up(loop.time() - since)
                if reason is not None:
                    self._give_up(ClusterError(reason))
                elif missing_since is None:
                    waiting.enter_context(self._wait())
                missing_since = since

    def _wait(self) -> contextlib.AbstractContextManager[None]:
        return self._waits.on(WaitKind.SLOTS, CLUSTER, patience_seconds=0.0, describe=self._missing)

    def _missing(self) -> str:
        return (
            f"a node was lost, and for at most {self._config.startup_timeout_seconds:g} s the run waits for"
            f" other nodes with room for its slots ({free_resources()})"
        )

    def _reason_to_give_up(self, missing_seconds: float) -> str | None:
        alive = sum(bool(node["Alive"]) for node in ray.nodes())
        if not alive and self._config.address is None:
            return "The node of the local Ray died, and nothing can start it again: resume the run."
        if missing_seconds <= self._config.startup_timeout_seconds:
            return None
        return (
            f"Slots on a lost node were not replaced within {self._config.startup_timeout_seconds:g} s"
            f" (cluster.startup_timeout_seconds): {free_resources()}. Resume the run when the cluster has"
            " room, or with fewer workers."
        )


@contextlib.asynccontextmanager
async def hold_slots(
    config: ClusterConfig,
    placement: Placement,
    run_id: str,
    attempt: int,
    sink: UsageSink,
    clock: Clock,
    waits: Waits,
) -> AsyncGenerator[Slots]:
    """Reserve the slots and open a lease for each accelerator; release everything when the body ends.

    Raises ClusterError if the slots are not free within `config.startup_timeout_seconds`; the message
    compares what the run needs with what the cluster has.
    """
    group = placement_group([slot.bundle() for slot in placement.slots], strategy=config.strategy)
    try:
        await _wait_until_ready(group, config, placement, waits)
        async with leased_slots(group, config, placement, run_id, attempt, sink, clock, waits) as slots:
            watching = slots.start(slots.watch())
            try:
                yield slots
            finally:
                watching.cancel()
    finally:
        remove_placement_group(group)


@contextlib.asynccontextmanager
async def leased_slots(
    group: PlacementGroup,
    config: ClusterConfig,
    placement: Placement,
    run_id: str,
    attempt: int,
    sink: UsageSink,
    clock: Clock,
    waits: Waits,
) -> AsyncGenerator[Slots]:
    """The slots of a group that is reserved; each accelerator has a lease while the body runs."""
    leases = _open_leases(group, config, placement, run_id, attempt, sink, clock)
    slots = Slots(group, leases, config, waits)
    lease_ids = [lease_id for ids in leases for lease_id in ids]
    beating = slots.start(_beat(lease_ids, config.heartbeat_seconds, sink, clock))
    try:
        yield slots
    finally:
        beating.cancel()
        remove_placement_group(group)  # the slots are held until now
        for lease_id in lease_ids:
            sink.emit(LeaseClosed(new_event_id(), clock.now_ns(), lease_id, CloseReason.RELEASED))


async def _wait_until_ready(
    group: PlacementGroup, config: ClusterConfig, placement: Placement, waits: Waits
) -> None:
    ready = asyncio.wrap_future(group.ready().future())
    timeout, wanted = config.startup_timeout_seconds, [slot.bundle() for slot in placement.slots]
    need = f"the run needs {wanted} ({config.strategy})"

    def missing() -> str:
        return f"{need}, {free_resources()}; it waits for at most {timeout:g} s"

    try:
        with waits.on(WaitKind.SLOTS, CLUSTER, patience_seconds=QUIET_SECONDS, describe=missing):
            await asyncio.wait_for(ready, timeout)
    except TimeoutError as error:
        raise ClusterError(
            f"The slots were not free within {timeout:g} s: {need}, {free_resources()}."
        ) from error


def free_resources() -> str:
    """What the cluster has free, for messages."""
    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if kind in total or kind == "CPU"]
    counts = ", ".join(f"{free.get(kind, 0.0):g} of {total.get(kind, 0.0):g} {kind}s" for kind in kinds)
    return f"the cluster has {counts} free"


def _open_leases(
    group: PlacementGroup,
    config: ClusterConfig,
    placement: Placement,
    run_id: str,
    attempt: int,
    sink: UsageSink,
    clock: Clock,
) -> tuple[tuple[str, ...], ...]:
    nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    leases: list[tuple[str, ...]] = []
    for index, slot in enumerate(placement.slots):
        # With the group's id, because a run that is resumed from a store on a new machine counts its
        # attempts from 1 again.
        stem = f"{run_id}/{attempt}-{group.id.hex()[:12]}/{index}"
        ids = tuple(f"{stem}.{unit}" for unit in range(slot.accelerators))
        leases.append(ids)
        for lease_id in ids:
            sink.emit(
                LeaseOpened(
                    event_id=new_event_id(),
                    at_ns=clock.now_ns(),
                    lease_id=lease_id,
                    run_id=run_id,
                    attempt=attempt,
                    resource=config.resource,
                    sku=config.sku,
                    node=nodes[index],
                    placement_group=group.id.hex(),
                    slot=index,
                )
            )
    return tuple(leases)


async def _beat(lease_ids: list[str], every_seconds: float, sink: UsageSink, clock: Clock) -> None:
    while True:
        for lease_id in lease_ids:
            sink.emit(Heartbeat(new_event_id(), clock.now_ns(), lease_id))
        await asyncio.sleep(every_seconds)
