"""All learner ranks as one `LearnerStage`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from orchestrator.errors import WorkerLostError
from orchestrator.training.cluster.actors import DISK, STORE, LearnerActor, RankSetup
from orchestrator.training.cluster.calls import all_ranks, answer
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.cluster.run_spec import ActorIdentity, RunSpec
from orchestrator.training.cluster.slots import Slots
from orchestrator.training.cluster.workers import block_refs
from orchestrator.training.records import Batch, WeightVersion
from orchestrator.training.stages import PublishedWeights, Span, Updated, WeightRef
from orchestrator.training.usage import Role
from orchestrator.training.weights.choice import resolve_channel
from orchestrator.training.weights.config import WeightsConfig
from orchestrator.training.weights.rendezvous import Rendezvous

logger = logging.getLogger(__name__)

DEATH_NOTICE_SECONDS = 60.0
"""How long after one rank's crash Ray may take to report that the death of another one caused it: for a lost
node, tens of seconds.
"""


class RayLearnerGroup:
    """Calls every rank with the same arguments, in the same order. If a rank is lost the others hang or fail
    in a collective: WorkerLostError is raised, and `rebuild` replaces all ranks.
    """

    def __init__(self, placement: Placement, slots: Slots, spec: RunSpec, timeout_seconds: float) -> None:
        self._placement, self._actor_slots = placement, placement.of(Role.LEARNER)
        self._slots, self._spec = slots, spec
        self._timeout_seconds = timeout_seconds
        self._incarnation = 0
        self._lost: WorkerLostError | None = None
        """A loss during `start`, raised by the next call."""
        self._weights_config: WeightsConfig | None = None
        """With the channel in use; None before the first choice."""
        self._ranks: list[Any] = self._start()

    def only_node(self) -> str | None:
        """The id of the node that every rollout worker must be on to read the weights; None: any node."""
        nodes = self._slots.nodes()
        return nodes[self._actor_slots[0].slot] if self._choose(nodes).channel == "shared_memory" else None

    async def start(self) -> None:
        """Connect the ranks and build the model.

        A rank that is lost meanwhile is reported by the next call, so that the loop rebuilds the ranks within
        its budget as it does later. Every other error is raised here.
        """
        try:
            await self._connect()
        except WorkerLostError as lost:
            logger.warning("%s while the learner was starting", lost)
            self._lost = lost

    async def update(self, batch: Batch) -> Updated:
        """One training step on all ranks, which all report the same numbers. Raises DataLostError, before any
        rank begins, if rollouts of the batch are gone.
        """
        await self._call_all("fetch", batch.step, block_refs(batch.tickets))
        answers = await self._call_all("update", batch.step)
        return Updated(answers[0][0], _spans(spans for _, spans in answers))

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        """Publish the weights through the run's weight channel."""
        answers = await self._call_all("publish", version)
        return PublishedWeights(version, WeightRef(answers[0][0]), _spans(spans for _, spans in answers))

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Every rank writes its shard."""
        return _spans(await self._call_all("save", directory, step))

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        """Every rank copies its shard to host memory."""
        return _spans(await self._call_all("snapshot", step))

    async def write(self, directory: Path) -> None:
        """Every rank writes its snapshot while other calls continue."""
        await self._call_all("write", directory, group=DISK)

    async def load(self, directory: Path) -> None:
        """Every rank restores its state from the shards."""
        await self._call_all("load", directory)

    async def export(self, directory: Path) -> None:
        """Rank 0 writes the model as a Hugging Face folder."""
        await self._call_all("export", directory)

    async def rebuild(self) -> None:
        """Kill all ranks and start new ones on the same slots. Raises ClusterError if a slot is on a lost
        node and is not reserved again in time.
        """
        self.stop()
        self._lost = None
        self._incarnation += 1
        self._ranks = self._start()
        await self._connect()

    def stop(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)

    def _start(self) -> list[Any]:
        groups = {DISK: 1, STORE: 2}
        shell = ray.remote(concurrency_groups=groups)(LearnerActor)  # pyright: ignore[reportCallIssue]
        return [
            shell.options(**self._slots.options(actor_slot, self._incarnation)).remote(
                self._spec,
                ActorIdentity(
                    actor_slot.name, actor_slot.role, self._incarnation, self._slots.leases[actor_slot.slot]
                ),
            )
            for actor_slot in self._actor_slots
        ]

    async def _connect(self) -> None:
        ranks = len(self._ranks)
        nodes = self._slots.nodes()
        one_node = len({nodes[actor_slot.slot] for actor_slot in self._actor_slots}) == 1
        setup = RankSetup(
            rank=0,
            world_size=ranks,
            device="cuda:0" if self._spec.use_gpu else "cpu",
            one_node=one_node,
            weights=self._choose(nodes),
            rank_0=None,
            rendezvous=self._rendezvous() if one_node else None,
        )
        rank_0 = self._ranks[0]
        setups = [setup, *(replace(setup, rank=rank, rank_0=rank_0) for rank in range(1, ranks))]
        calls = [actor.setup.remote(each) for actor, each in zip(self._ranks, setups, strict=True)]
        await self._slots.while_held(self._answers(calls))

    def _choose(self, nodes: Sequence[str]) -> WeightsConfig:
        """The weights' config with the channel for the nodes that the slots are on now. Once the object store
        was chosen it remains, because elastic workers may be on any node.
        """
        chosen = self._weights_config
        if chosen is None or chosen.channel == "shared_memory":
            readers = self._placement.of(Role.ROLLOUT)
            chosen = self._weights_config = resolve_channel(
                self._spec.weights,
                [nodes[actor_slot.slot] for actor_slot in (self._actor_slots[0], *readers)],
                may_spread=self._placement.elastic_workers > 0 and not self._slots.are_local,
            )
        return chosen

    def _rendezvous(self) -> Rendezvous:
        """A fresh one each time: ranks of an earlier incarnation may still be ending."""
        name, timeout = secrets.token_hex(8), self._spec.weights.timeout_seconds
        return Rendezvous(name, len(self._ranks), timeout, secrets.token_bytes(32))

    async def _call_all(self, method: str, *arguments: object, group: str | None = None) -> list[Any]:
        if self._lost is not None:
            raise self._lost
        options = {} if group is None else {"concurrency_group": group}
        return await self._answers(
            [getattr(rank, method).options(**options).remote(*arguments) for rank in self._ranks]
        )

    async def _answers(self, refs: Sequence[Any]) -> list[Any]:
        calls = (
            answer(actor_slot.name, ref, self._timeout_seconds)
            for actor_slot, ref in zip(self._actor_slots, refs, strict=True)
        )
        return await all_ranks(calls, DEATH_NOTICE_SECONDS)


def _spans(parts: Iterable[tuple[Span, ...]]) -> tuple[Span, ...]:
    return tuple(span for spans in parts for span in spans)
