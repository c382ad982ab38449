"""Assigns actors to slots. Pure arithmetic that needs no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.config import ClusterConfig, Share
from orchestrator.training.usage import Role


@dataclass(frozen=True, slots=True)
class ActorSlot:
    """The slot of one actor. `name` is `<role>-<index>`, `slot` an index into `Placement.slots`."""

    name: str
    role: Role
    slot: int
    share: Share
    interpreter: str | None = None
    """Path of the Python that the actor runs under; None: that of the driver."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One bundle of the placement group. The ledger has one lease for each of its `accelerators`, which
    are GPUs or CPU slots.
    """

    cpus: float
    gpus: int
    accelerators: int

    def bundle(self) -> dict[str, float]:
        """The bundle in Ray's format, which has no zero entries."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", float(self.gpus))) if amount}


@dataclass(frozen=True, slots=True)
class Placement:
    """The slots that a run holds from its beginning to its end, and the actors assigned to them. Elastic
    rollout workers come in addition, each with a slot of its own.
    """

    slots: tuple[Slot, ...]
    actor_slots: tuple[ActorSlot, ...]
    elastic_slot: Slot
    elastic_workers: int = 0
    """The number of elastic workers that the config asks for."""

    def of(self, role: Role) -> list[ActorSlot]:
        """The actors of one role with their slots, by index."""
        return [actor_slot for actor_slot in self.actor_slots if actor_slot.role is role]

    def all_slots(self) -> tuple[Slot, ...]:
        """The slots that the run holds when all workers that its config asks for have joined."""
        return (*self.slots, *[self.elastic_slot] * self.elastic_workers)

    def elastic(self, index: int) -> Placement:
        """The elastic worker `rollout-<index>` alone on its slot."""
        actor_slot = replace(self.of(Role.ROLLOUT)[0], name=f"rollout-{index}", slot=0)
        return Placement((self.elastic_slot,), (actor_slot,), self.elastic_slot)


def plan_placement(
    cluster: ClusterConfig,
    rollout_workers: int,
    reward_workers: int,
    learner_ranks: int,
    interpreters: Mapping[Role, str] = MappingProxyType({}),
    elastic_workers: int = 0,
) -> Placement:
    """Assign the actors of a run to slots. For example, two rollout workers and two ranks use two slots if
    colocated and four if split. `rollout_workers` does not count the elastic ones.

    `interpreters` are the Pythons of roles that do not run under the driver's. Raises ConfigError, naming the
    share, if the actors of a slot need more than the slot has.
    """
    first_learner = 0 if cluster.layout == "colocated" else rollout_workers
    actor_slots = [
        ActorSlot(f"rollout-{i}", Role.ROLLOUT, i, cluster.rollout, interpreters.get(Role.ROLLOUT))
        for i in range(rollout_workers)
    ]
    actor_slots += [
        ActorSlot(
            f"learner-{i}", Role.LEARNER, first_learner + i, cluster.learner, interpreters.get(Role.LEARNER)
        )
        for i in range(learner_ranks)
    ]
    actor_slots += [
        ActorSlot(
            f"reward-{i}", Role.REWARD, i % rollout_workers, cluster.reward, interpreters.get(Role.REWARD)
        )
        for i in range(reward_workers)
    ]
    count = 1 + max(actor_slot.slot for actor_slot in actor_slots)
    slots = tuple(
        _slot(cluster, [actor_slot for actor_slot in actor_slots if actor_slot.slot == index])
        for index in range(count)
    )
    elastic_slot = _slot(cluster, actor_slots[:1])
    return Placement(slots, tuple(actor_slots), elastic_slot, elastic_workers)


def _slot(cluster: ClusterConfig, actor_slots: list[ActorSlot]) -> Slot:
    cpus = sum(actor_slot.share.cpus for actor_slot in actor_slots)
    if cpus > cluster.slot_cpus + 1e-9:
        names = ", ".join(actor_slot.name for actor_slot in actor_slots)
        raise ConfigError(
            "cluster.slot_cpus", f"{cluster.slot_cpus:g}", f"{cpus:g} or more", f"{names} share one slot"
        )
    gpus = sum(actor_slot.share.gpus for actor_slot in actor_slots)
    if cluster.resource == "cpu":
        if gpus:
            raise ConfigError("cluster.resource", "cpu", "gpu", f"the shares need {gpus:g} GPUs per slot")
        return Slot(cluster.slot_cpus, 0, 1)
    whole = max(1, math.ceil(gpus - 1e-9))
    largest = max(actor_slot.share.gpus for actor_slot in actor_slots)
    if 1 < gpus < whole - 1e-9 and largest < 1:
        raise ConfigError("cluster.*.gpus", f"{gpus:g}", "1 or less in total", "fractions share one GPU")
    return Slot(cluster.slot_cpus, whole, whole)
