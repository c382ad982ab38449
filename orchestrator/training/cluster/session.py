"""Ray itself: connect or start it, hold the run's slots, and tell the ledger about both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.placement import ActorSlot, Placement
from orchestrator.training.usage import (
    CloseReason,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    UsageSink,
    new_event_id,
)

logger = logging.getLogger(__name__)


class ClusterError(OrchestratorError):
    """The cluster can't give what the run needs."""


@contextlib.contextmanager
def ray_session(config: ClusterConfig, slots: int) -> Generator[None]:
    """Ray for as long as the body runs: connected to `config.address`, or started on this machine with
    `slots` x `slot_cpus` CPUs. Raises ClusterError if it can't be had.
    """
    # A failed call is raised where it is awaited; without this Ray prints the handles nobody
    # awaits once more.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Whole GPUs and CPUs are ours to share out: Ray must not hide a GPU from an actor that
    # takes a share of 0.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local: dict[str, Any] = {
        "num_cpus": max(1, round(slots * config.slot_cpus)),
        "object_store_memory": config.object_store_bytes,
    }
    try:
        ray.init(
            address=config.address,
            include_dashboard=False if config.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="orchestrator",
            **({} if config.address else local),
        )
    except Exception as error:  # Ray raises a bare Exception if its own processes do not come up in time
        raise ClusterError(f"Ray is not to be had at {config.address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots that a run holds. `leases[i]` are the lease ids of slot i, one an accelerator; `nodes[i]` is
    the id of the node that it is on.
    """

    group: PlacementGroup
    leases: tuple[tuple[str, ...], ...]
    nodes: tuple[str, ...]

    def options(self, seat: ActorSlot, life: int) -> dict[str, Any]:
        """Ray options that put an actor on its seat.

        A crashed actor is replaced by its pool, never by Ray. Ray's own events of an actor are compared with
        the ledger by its name, `<run>/<attempt>-<group>/<seat>/<life>`; no two actors share one.
        """
        held = self.leases[seat.slot][0].rpartition("/")[0]
        return {
            "name": f"{held}/{seat.name}/{life}",
            "num_cpus": seat.share.cpus,
            "num_gpus": seat.share.gpus,
            "max_restarts": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, seat.slot),
        }


@contextlib.asynccontextmanager
async def hold_slots(
    config: ClusterConfig, placement: Placement, run_id: str, attempt: int, sink: UsageSink, clock: Clock
) -> AsyncGenerator[Slots]:
    """Reserve the slots, lease by lease in the ledger, and give them back when the body ends,
    however it ends.

    Raises ClusterError, saying what was asked for and what there is, if they are not ready in time.
    """
    group = placement_group([slot.bundle() for slot in placement.slots], strategy=config.strategy)
    try:
        await _wait_until_ready(group, config, placement)
        slots = _open_leases(group, config, placement, run_id, attempt, sink, clock)
    except BaseException:
        remove_placement_group(group)
        raise
    heartbeat = asyncio.ensure_future(_beat(slots, config.heartbeat_seconds, sink, clock))
    try:
        yield slots
    finally:
        heartbeat.cancel()
        remove_placement_group(group)
        for lease_id in _all_leases(slots):
            sink.emit(LeaseClosed(new_event_id(), clock.now_ns(), lease_id, CloseReason.RELEASED))


async def _wait_until_ready(group: PlacementGroup, config: ClusterConfig, placement: Placement) -> None:
    ready = asyncio.wrap_future(group.ready().future())
    try:
        await asyncio.wait_for(ready, config.startup_timeout_seconds)
    except TimeoutError as error:
        wanted = [slot.bundle() for slot in placement.slots]
        raise ClusterError(
            f"the slots were not free within {config.startup_timeout_seconds:g} s: the run needs {wanted}"
            f" ({config.strategy}), the cluster has {ray.cluster_resources()},"
            f" of which {ray.available_resources()} are free"
        ) from error


def _open_leases(
    group: PlacementGroup,
    config: ClusterConfig,
    placement: Placement,
    run_id: str,
    attempt: int,
    sink: UsageSink,
    clock: Clock,
) -> Slots:
    table: dict[str, Any] = placement_group_table(group)
    nodes: dict[int, str] = table["bundles_to_node_id"]
    leases: list[tuple[str, ...]] = []
    for index, slot in enumerate(placement.slots):
        # The group's id, because a run that goes on from a store on a new machine counts its
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
    return Slots(group, tuple(leases), tuple(nodes[index] for index in range(len(leases))))


async def _beat(slots: Slots, every_seconds: float, sink: UsageSink, clock: Clock) -> None:
    while True:
        for lease_id in _all_leases(slots):
            sink.emit(Heartbeat(new_event_id(), clock.now_ns(), lease_id))
        await asyncio.sleep(every_seconds)


def _all_leases(slots: Slots) -> list[str]:
    return [lease_id for ids in slots.leases for lease_id in ids]
