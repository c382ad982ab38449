"""All learner ranks as one `LearnerStage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.training.cluster.actors import LearnerActor
from orchestrator.training.cluster.calls import all_ranks, answer
from orchestrator.training.cluster.parts import ActorIdentity, RunSpec
from orchestrator.training.cluster.placement import ActorSlot
from orchestrator.training.cluster.session import Slots
from orchestrator.training.cluster.workers import part_refs
from orchestrator.training.records import Batch, WeightVersion
from orchestrator.training.stages import PublishedWeights, Span, Updated

DISK = "disk"
"""The concurrency group of a rank's `write`: one thread beside the one that trains."""
DEATH_NOTICE_SECONDS = 60.0
"""How long after a rank's crash Ray may tell that another one's death was the cause: for a lost node,
tens of seconds.
"""


class RayLearnerGroup:
    """Calls every rank with the same arguments, in the same order. If one is lost the others hang in a
    collective, or crash in it: the loss is raised, and `rebuild` replaces them all.
    """

    def __init__(
        self, seats: Sequence[ActorSlot], slots: Slots, parts: RunSpec, timeout_seconds: float
    ) -> None:
        self._seats, self._slots, self._parts = seats, slots, parts
        self._timeout_seconds = timeout_seconds
        self._life = 0
        self._ranks: list[Any] = self._start()

    async def ready(self) -> None:
        """Let the ranks find each other and build the model."""
        from orchestrator.training.learner.sharding.distributed import DistributedInit

        host, port = (await self._answer(0, self._ranks[0].address.remote())).rsplit(":", 1)
        device = "cuda:0" if self._parts.use_gpu else "cpu"
        backend = self._parts.learner.backend
        inits = [
            DistributedInit(rank, len(self._ranks), host, int(port), backend, device)
            for rank in range(len(self._ranks))
        ]
        together = len({self._slots.nodes[seat.slot] for seat in self._seats}) == 1
        ranks = zip(self._ranks, inits, strict=True)
        await self._gather([rank.setup.remote(init, together) for rank, init in ranks])

    async def update(self, batch: Batch) -> Updated:
        """One step on all ranks; every rank reports the same numbers. Raises DataLostError before any rank
        begins if rollouts of the batch are gone.
        """
        refs = part_refs(batch.tickets)
        await self._gather([rank.fetch.remote(batch.step, refs) for rank in self._ranks])
        answers = await self._gather([rank.update.remote(batch.step) for rank in self._ranks])
        return Updated(answers[0][0], _spans(spans for _, spans in answers))

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        """Rank 0 publishes them through the run's weight channel, with the help of the others."""
        answers = await self._gather([rank.publish.remote(version) for rank in self._ranks])
        return PublishedWeights(version, answers[0][0], _spans(spans for _, spans in answers))

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Every rank writes its shard."""
        return _spans(await self._gather([rank.save.remote(directory, step) for rank in self._ranks]))

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        """Every rank copies its shard to host memory."""
        return _spans(await self._gather([rank.snapshot.remote(step) for rank in self._ranks]))

    async def write(self, directory: Path) -> None:
        """Every rank writes its copy, beside whatever else it does."""
        await self._gather(
            [rank.write.options(concurrency_group=DISK).remote(directory) for rank in self._ranks]
        )

    async def load(self, directory: Path) -> None:
        """Every rank reads the shards."""
        await self._gather([rank.load.remote(directory) for rank in self._ranks])

    async def export(self, directory: Path) -> None:
        """A Hugging Face folder, written by rank 0."""
        await self._gather([rank.export.remote(directory) for rank in self._ranks])

    async def rebuild(self) -> None:
        """Kill all ranks and start fresh ones on the same seats."""
        self.stop()
        self._life += 1
        self._ranks = self._start()
        await self.ready()

    def stop(self) -> None:
        """Kill all ranks."""
        for rank in self._ranks:
            ray.kill(rank)

    def _start(self) -> list[Any]:
        shell = ray.remote(concurrency_groups={DISK: 1})(LearnerActor)  # pyright: ignore[reportCallIssue]
        return [
            shell.options(**self._slots.options(seat, self._life)).remote(
                self._parts, ActorIdentity(seat.name, seat.role, self._life, self._slots.leases[seat.slot])
            )
            for seat in self._seats
        ]

    async def _gather(self, refs: Sequence[Any]) -> list[Any]:
        calls = (self._answer(index, ref) for index, ref in enumerate(refs))
        return await all_ranks(calls, DEATH_NOTICE_SECONDS)

    async def _answer(self, index: int, ref: Any) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        return await answer(self._seats[index].name, ref, self._timeout_seconds)


def _spans(parts: Any) -> tuple[Span, ...]:  # noqa: ANN401
    return tuple(span for spans in parts for span in spans)
