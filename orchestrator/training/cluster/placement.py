"""Which actor sits on which slot: pure arithmetic, before anything is asked of Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.config import ClusterConfig, Share
from orchestrator.training.usage import Role


@dataclass(frozen=True, slots=True)
class ActorSlot:
    """One actor's place: `name` is `<role>-<index>`, `slot` an index into `Placement.slots`."""

    name: str
    role: Role
    slot: int
    share: Share


@dataclass(frozen=True, slots=True)
class Slot:
    """One bundle of the placement group. A slot of `accelerators` GPUs (or CPU slots) is that many leases."""

    cpus: float
    gpus: int
    accelerators: int

    def bundle(self) -> dict[str, float]:
        """The bundle as Ray wants it: no zero entries."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", float(self.gpus))) if amount}


@dataclass(frozen=True, slots=True)
class Placement:
    """All slots of a run and who sits where."""

    slots: tuple[Slot, ...]
    seats: tuple[ActorSlot, ...]

    def of(self, role: Role) -> list[ActorSlot]:
        """The seats of one role, by index."""
        return [seat for seat in self.seats if seat.role is role]


def plan_placement(
    cluster: ClusterConfig, rollout_workers: int, reward_workers: int, learner_ranks: int
) -> Placement:
    """Two rollout workers and two ranks, colocated, are two slots; split, they are four.

    Raises ConfigError, naming the share, if the actors of a slot need more than the slot has.
    """
    first_learner = 0 if cluster.layout == "colocated" else rollout_workers
    seats = [ActorSlot(f"rollout-{i}", Role.ROLLOUT, i, cluster.rollout) for i in range(rollout_workers)]
    seats += [
        ActorSlot(f"learner-{i}", Role.LEARNER, first_learner + i, cluster.learner)
        for i in range(learner_ranks)
    ]
    seats += [
        ActorSlot(f"reward-{i}", Role.REWARD, i % rollout_workers, cluster.reward)
        for i in range(reward_workers)
    ]
    count = 1 + max(seat.slot for seat in seats)
    slots = tuple(_slot(cluster, [seat for seat in seats if seat.slot == index]) for index in range(count))
    return Placement(slots, tuple(seats))


def _slot(cluster: ClusterConfig, seats: list[ActorSlot]) -> Slot:
    cpus = sum(seat.share.cpus for seat in seats)
    if cpus > cluster.slot_cpus + 1e-9:
        names = ", ".join(seat.name for seat in seats)
        raise ConfigError(
            "cluster.slot_cpus", f"{cluster.slot_cpus:g}", f"{cpus:g} or more", f"{names} share one slot"
        )
    gpus = sum(seat.share.gpus for seat in seats)
    if cluster.resource == "cpu":
        if gpus:
            raise ConfigError("cluster.resource", "cpu", "gpu", f"the shares ask for {gpus:g} GPUs a slot")
        return Slot(cluster.slot_cpus, 0, 1)
    whole = max(1, math.ceil(gpus - 1e-9))
    largest = max(seat.share.gpus for seat in seats)
    if 1 < gpus < whole - 1e-9 and largest < 1:
        raise ConfigError("cluster.*.gpus", f"{gpus:g}", "1 or less in all", "fractions share one GPU")
    return Slot(cluster.slot_cpus, whole, whole)
