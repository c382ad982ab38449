"""A fake cluster that has slots for elastic workers: they start, load weights, are stopped and lose their
nodes as real ones do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import WorkerLostError
from orchestrator.training.rollouts.pool import RolloutWorker
from orchestrator.training.simulation.stages import Draws, Faults, SimulatedRolloutWorker, Timing
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.supervision.elastic import Tell, WorkerState
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import UsageSink

T = TypeVar("T")


class StoppableWorker(SimulatedRolloutWorker):
    """A rollout worker that takes time to load weights, and whose process can be stopped at any moment."""

    def __init__(
        self,
        name: str,
        draws: Draws,
        timing: Timing,
        faults: Faults,
        clock: Clock,
        sink: UsageSink,
        load_seconds: float,
    ) -> None:
        super().__init__(name, draws, timing, faults, clock, sink)
        self._load_seconds = load_seconds
        self._stopped = asyncio.Event()
        self.loaded: list[int] = []
        """The versions that it loaded, in order."""
        self.loading: int | None = None
        """The version that it is loading."""
        self._sequence = -1

    def stop(self) -> None:
        self._stopped.set()

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        await self.update(weights)
        async with contextlib.aclosing(super().generate(request, weights)) as portions:
            while generated := await self._unless_stopped(anext(portions, None)):
                yield generated

    async def update(self, weights: PublishedWeights) -> None:
        if weights.sequence > self._sequence:
            self.loading = weights.version
            try:
                await self._unless_stopped(asyncio.sleep(self._load_seconds))
            finally:
                self.loading = None
            self._sequence = weights.sequence
            self.loaded.append(weights.version)

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise WorkerLostError(self.name, "its process was stopped")
            return await working
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)


@dataclass(eq=False)
class SimulatedSlots:
    """The slots that the cluster has for elastic workers, and what was done with them."""

    build: Callable[[str], StoppableWorker]
    pool: WorkerPool[RolloutWorker]
    catch_up: Callable[[RolloutWorker], Awaitable[None]]
    start_seconds: float
    free: asyncio.Semaphore
    failing_starts: dict[str, int] = field(default_factory=dict[str, int])
    """How many of the next starts of a worker fail, by its name."""
    workers: dict[str, StoppableWorker] = field(default_factory=dict[str, StoppableWorker])
    """The newest process of each worker that was started."""
    leases: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    """(worker, start, end) of every slot that was held and given back."""
    _dead: set[str] = field(default_factory=set[str])

    @contextlib.asynccontextmanager
    async def hire(self, index: int, incarnation: int, tell: Tell) -> AsyncGenerator[RolloutWorker]:
        """See `supervision.elastic.Hire`."""
        name, loop = f"rollout-{index}", asyncio.get_running_loop()
        tell(WorkerState.WAITING, "a free slot")
        await self.free.acquire()
        since = loop.time()
        try:
            tell(WorkerState.STARTING, "")
            await asyncio.sleep(self.start_seconds)
            if self.failing_starts.get(name, 0):
                self.failing_starts[name] -= 1
                raise WorkerLostError(name, "died while starting")
            worker = self.workers[name] = self.build(name)
            await self.catch_up(worker)
            try:
                yield worker
            finally:
                worker.stop()
        finally:
            self.leases.append((name, since, loop.time()))
            if name in self._dead:
                self._dead.discard(name)
            else:
                self.free.release()

    def lose_node(self, name: str) -> None:
        """The node of this worker dies; its slot does not come back until `free` is released."""
        worker = self.workers[name]
        self._dead.add(name)
        worker.stop()
        self.pool.report_lost(worker, WorkerLostError(name, "its node died", node_died=True))
