"""Turns a sampler that works step by step into an engine.

Most engines inside this process alternate between two things: they read waiting prompts, or they sample one
token for every running rollout. `StepSampler` is that alternation as plain calls without concurrency, which
makes it easy to write and to test. `StepEngine` runs the steps on the event loop as long as there is work,
and does everything else between two steps: new groups, cancelled groups and new weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from orchestrator.training.records import WeightVersion
from orchestrator.training.rollouts.engine import SampledGroup, SampleRequest, WeightTarget
from orchestrator.training.rollouts.loading import WeightLoader
from orchestrator.training.tensors.buckets import Bucket


class StepSampler(WeightTarget, Protocol):
    """Samples groups step by step. Tickets identify the groups, because an evaluation uses group ids that
    training uses too.
    """

    @property
    def running(self) -> int:
        """Number of rollouts that have been started and not finished."""
        ...

    def submit(self, ticket: int, request: SampleRequest) -> None:
        """Queue a group. Raises PromptTooLongError if the prompt leaves no room in the context."""
        ...

    def abort(self, ticket: int) -> None:
        """Drop a group that was submitted and has not been returned."""
        ...

    def step(self) -> Sequence[tuple[int, SampledGroup]]:
        """Start queued rollouts, or sample one token for every running rollout. Returns the groups that are
        complete, with their tickets.
        """
        ...

    def recompute(self) -> None:
        """Recompute what running rollouts have cached of the model, after its weights were replaced."""
        ...


class StepEngine:
    """An `Engine` over a `StepSampler`. Belongs to one event loop at a time."""

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler
        self._loader = WeightLoader(sampler)
        self._results: dict[int, asyncio.Future[SampledGroup]] = {}
        self._next_ticket = 0
        self._stepping: asyncio.Task[None] | None = None

    async def sample(self, request: SampleRequest) -> SampledGroup:
        """See `Engine`."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self.sampler.submit(ticket, request)
        self._results[ticket] = result = asyncio.get_running_loop().create_future()
        self._start()
        try:
            return await result
        finally:
            if self._results.pop(ticket, None) is not None:
                self.sampler.abort(ticket)

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        """See `Engine`. It runs on the event loop, so no step can run meanwhile."""
        self._loader.load(version, buckets)
        if recompute and self.sampler.running:
            self.sampler.recompute()

    def _start(self) -> None:
        if self._results and (self._stepping is None or self._stepping.done()):
            self._stepping = asyncio.ensure_future(self._step())

    async def _step(self) -> None:
        """Run steps until nothing is left to do. An error of a step is raised to everyone who waits; the
        sampler is not used again after it.
        """
        try:
            while self._results:
                for ticket, group in self.sampler.step():
                    result = self._results.pop(ticket, None)
                    if result is not None and not result.done():
                        result.set_result(group)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            results, self._results = self._results, {}
            for result in results.values():
                if not result.done():
                    result.set_exception(error)
