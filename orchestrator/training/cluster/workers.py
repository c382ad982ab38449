"""Rollout and reward workers as the pools see them: one object a seat, over whichever actor sits there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.errors import DataLostError
from orchestrator.training.cluster.actors import PartRefs, RewardActor, RolloutActor
from orchestrator.training.cluster.calls import answer
from orchestrator.training.cluster.parts import ActorIdentity, RunSpec
from orchestrator.training.cluster.placement import ActorSlot
from orchestrator.training.cluster.session import Slots
from orchestrator.training.records import GroupTicket, RecordKind
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest, Scored
from orchestrator.training.weights.channel import WeightsNotFoundError


class ManagedActor:
    """An actor on its seat; `restart` kills it, if it still lives, and starts the next one there."""

    def __init__(
        self, shell: type, seat: ActorSlot, slots: Slots, parts: RunSpec, timeout_seconds: float
    ) -> None:
        self._shell, self._seat, self._slots, self._parts = shell, seat, slots, parts
        self._timeout_seconds = timeout_seconds
        self._life = 0
        self._actor = self._start()

    @property
    def name(self) -> str:
        """`rollout-0`, over all lives."""
        return self._seat.name

    async def ready(self) -> None:
        """Wait until it is built. Raises what kept it from being built."""
        await self._answer(self._actor.ready.remote())

    async def restart(self) -> None:
        """Kill the actor, if it still lives, and start the next one.

        Raises WorkerLostError if that can't be had.
        """
        ray.kill(self._actor)
        self._life += 1
        self._actor = self._start()
        await self.ready()

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self._actor)

    def _start(self) -> Any:  # noqa: ANN401 - Ray's actor handles have no static type
        post = ActorIdentity(
            self._seat.name, self._seat.role, self._life, self._slots.leases[self._seat.slot]
        )
        options = self._slots.options(self._seat, self._life)
        return ray.remote(self._shell).options(**options).remote(self._parts, post)

    async def _answer(self, ref: Any) -> Any:  # noqa: ANN401
        return await answer(self.name, ref, self._timeout_seconds)


class RayRolloutWorker(ManagedActor):
    """A `RolloutWorker`."""

    def __init__(self, seat: ActorSlot, slots: Slots, parts: RunSpec, timeout_seconds: float) -> None:
        super().__init__(RolloutActor, seat, slots, parts, timeout_seconds)

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> Generated:
        """Sample; the block stays where it was made. Raises DataLostError if the weights are gone."""
        block, small = self._actor.generate.options(num_returns=2).remote(
            request, weights.version, weights.handle
        )
        try:
            tokens, spans = await self._answer(small)
        except WeightsNotFoundError as error:
            raise DataLostError(self.name, str(error)) from error
        return Generated(request, block, tokens, spans)


class RayRewardWorker(ManagedActor):
    """A `RewardWorker`."""

    def __init__(self, seat: ActorSlot, slots: Slots, parts: RunSpec, timeout_seconds: float) -> None:
        super().__init__(RewardActor, seat, slots, parts, timeout_seconds)

    async def score(self, generated: Generated) -> Scored:
        """Grade; the tickets carry the handles of the block and its scores."""
        request = generated.request
        scores, small = self._actor.score.options(num_returns=2).remote(
            generated.block, request.step, request.samples_heldout
        )
        facts, summary, spans = await self._answer(small)
        tickets = tuple(
            GroupTicket(
                group_id=group_id,
                prompt_id=prompt.prompt_id,
                requested_version=request.version,
                oldest_version=oldest,
                tokens=tokens,
                reward_mean=reward_mean,
                informative=informative,
                row=row,
                block=generated.block,
                scores=scores,
            )
            for row, ((group_id, prompt), (oldest, tokens, reward_mean, informative)) in enumerate(
                zip(request.groups, facts, strict=True)
            )
        )
        return Scored(tickets, summary, spans)

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the groups' rollouts. Raises StorageError if the disk refuses them, DataLostError if they are
        gone; the caller decides how many lost records it tolerates.
        """
        return await self._answer(
            self._actor.record.remote(step, part_refs(tickets), directory, kind, sample)
        )


def part_refs(tickets: Sequence[GroupTicket]) -> PartRefs:
    """The tickets by block: each block's handles once, with the rows of its groups."""
    rows: dict[Any, list[int]] = {}
    scores: dict[Any, Any] = {}
    for ticket in tickets:
        rows.setdefault(ticket.block, []).append(ticket.row)
        scores[ticket.block] = ticket.scores
    return [(block, scores[block], tuple(sorted(block_rows))) for block, block_rows in rows.items()]
