"""Rollout and reward workers as their pools see them: one object for each actor name, which outlives the
processes behind it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray

from orchestrator.errors import DataLostError, OrchestratorError
from orchestrator.training.cluster.actors import (
    BlockRefs,
    RewardActor,
    RolloutActor,
    ScoredInfo,
)
from orchestrator.training.cluster.calls import answer
from orchestrator.training.cluster.placement import ActorSlot
from orchestrator.training.cluster.run_spec import ActorIdentity, RunSpec
from orchestrator.training.cluster.slots import Slots
from orchestrator.training.records import (
    BlockRef,
    GroupTicket,
    RecordKind,
    RolloutBlock,
    ScoreBlock,
    ScoreRef,
)
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest, Scored
from orchestrator.training.weights.channel import WeightsNotFoundError

if TYPE_CHECKING:
    from orchestrator.training.rollouts.worker import PortionInfo

T = TypeVar("T")

RETIRE_SECONDS = 5.0
"""How long a worker that leaves may take to answer before it is stopped."""


class ManagedActor:
    """An actor on its slot, which can be replaced by a new process."""

    def __init__(
        self,
        shell: type,
        actor_slot: ActorSlot,
        slots: Slots,
        spec: RunSpec,
        timeout_seconds: float,
        incarnation: int = 0,
    ) -> None:
        self._shell, self._actor_slot, self._slots, self._spec = shell, actor_slot, slots, spec
        self._timeout_seconds = timeout_seconds
        self._incarnation = incarnation
        self._actor = self._start()

    @property
    def name(self) -> str:
        """`<role>-<index>`, the same for all incarnations."""
        return self._actor_slot.name

    async def ready(self) -> None:
        """Build the plain object inside the actor. Raises what prevents that, or ClusterError if the slot is
        on a lost node and is not reserved again in time.
        """
        await self._slots.while_held(self._answer(self._actor.ready.remote()))

    async def restart(self) -> None:
        """Kill the process, if it still runs, and start the next incarnation. Raises what `ready` raises."""
        ray.kill(self._actor)
        self._incarnation += 1
        self._actor = self._start()
        await self.ready()

    def stop(self) -> None:
        ray.kill(self._actor)

    def _start(self) -> Any:  # noqa: ANN401 - Ray's actor handles have no static type
        leases = self._slots.leases[self._actor_slot.slot]
        identity = ActorIdentity(self._actor_slot.name, self._actor_slot.role, self._incarnation, leases)
        options = self._slots.options(self._actor_slot, self._incarnation)
        return ray.remote(self._shell).options(**options).remote(self._spec, identity)

    async def _answer(self, ref: Any) -> Any:  # noqa: ANN401
        return await answer(self.name, ref, self._timeout_seconds)


class RayRolloutWorker(ManagedActor):
    """A `RolloutWorker`."""

    def __init__(
        self, actor_slot: ActorSlot, slots: Slots, spec: RunSpec, timeout_seconds: float, incarnation: int = 0
    ) -> None:
        super().__init__(RolloutActor, actor_slot, slots, spec, timeout_seconds, incarnation)
        self._keys = itertools.count()

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        """Sample; each block stays on the node where it was made. Raises DataLostError if the weights are
        gone. If the generator is closed early, the actor drops the groups that are left.
        """
        key = next(self._keys)
        block, small = self._actor.generate.options(num_returns=2).remote(key, request, weights)
        is_last = False
        try:
            while not is_last:
                info: PortionInfo = await self._loaded(self._answer(small))
                is_last, ready = info.is_last, block
                if not is_last:
                    block, small = self._actor.collect.options(num_returns=2).remote(key)
                yield Generated(_only(request, info.groups), BlockRef(ready), info.tokens, info.spans)
        finally:
            if not is_last:
                self._actor.cancel.remote(key)

    async def update(self, weights: PublishedWeights) -> None:
        """Load the weights now. Raises DataLostError if they are gone."""
        await self._loaded(self._answer(self._actor.update.remote(weights)))

    async def retire(self) -> None:
        """Stop the process, after it has stopped using its slot: its spans end before the lease does, unless
        it does not answer.
        """
        try:
            with contextlib.suppress(OrchestratorError):
                await answer(self.name, self._actor.retire.remote(), RETIRE_SECONDS)
        finally:
            self.stop()

    async def _loaded(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except WeightsNotFoundError as error:
            raise DataLostError(self.name, str(error)) from error


class RayRewardWorker(ManagedActor):
    """A `RewardWorker`."""

    def __init__(self, actor_slot: ActorSlot, slots: Slots, spec: RunSpec, timeout_seconds: float) -> None:
        super().__init__(RewardActor, actor_slot, slots, spec, timeout_seconds)

    async def score(self, generated: Generated) -> Scored:
        """Score a block; the tickets refer to the block and its scores."""
        request = generated.request
        scores, small = self._actor.score.options(num_returns=2).remote(
            generated.block, request.step, request.samples_heldout
        )
        info: ScoredInfo = await self._answer(small)
        tickets = tuple(
            GroupTicket(
                group_id=group_id,
                prompt_id=prompt.prompt_id,
                oldest_version=facts.oldest_version,
                tokens=facts.tokens,
                reward_mean=facts.reward_mean,
                informative=facts.informative,
                solved=facts.solved,
                row=row,
                block=generated.block,
                scores=ScoreRef(scores),
            )
            for row, ((group_id, prompt), facts) in enumerate(zip(request.groups, info.groups, strict=True))
        )
        return Scored(tickets, info.summary, info.spans)

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the groups' rollouts. Raises StorageError if the disk rejects them, DataLostError if they are
        gone; the caller decides how many lost records it tolerates.
        """
        call = self._actor.record.remote(step, block_refs(tickets), directory, kind, sample)
        return await self._answer(call)


def _only(request: RolloutRequest, group_ids: Sequence[int]) -> RolloutRequest:
    """The request with these of its groups, in this order."""
    prompts = dict(request.groups)
    return replace(request, groups=tuple((group_id, prompts[group_id]) for group_id in group_ids))


def block_refs(tickets: Sequence[GroupTicket]) -> list[BlockRefs]:
    """The tickets by block: the references of each block once, with the indices of its groups."""
    rows: dict[BlockRef, list[int]] = {}
    scores: dict[BlockRef, ScoreRef] = {}
    for ticket in tickets:
        rows.setdefault(ticket.block, []).append(ticket.row)
        scores[ticket.block] = ticket.scores
    return [
        BlockRefs(
            cast("ray.ObjectRef[RolloutBlock]", block),
            cast("ray.ObjectRef[ScoreBlock]", scores[block]),
            tuple(sorted(indices)),
        )
        for block, indices in rows.items()
    ]
