"""Lets a pool grow and shrink while it works.

Workers are *permanent* or *elastic*. The permanent ones are those that the run cannot do without
(`rollout.min_workers`): the pool restarts them, and fails if it cannot. Each elastic worker is hired by a
task of its own, which waits until the cluster has a slot, starts the worker, lets it join the pool, and
gives the slot back when it leaves. An elastic worker that is lost is hired again. If only its node was lost,
that is repeated as often as the cluster has another slot; otherwise at most `max_restarts` times, after
which it leaves and the run goes on without it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import FailureBudgetExceededError, OrchestratorError, StateError, WorkerLostError
from orchestrator.training.events import WorkerJoined, WorkerLeft, WorkerLost
from orchestrator.training.supervision.failure_budget import FailureBudget
from orchestrator.training.supervision.pool import Worker, WorkerPool

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""How long after a failure an elastic worker is hired again."""

W = TypeVar("W", bound=Worker)


class WorkerState(StrEnum):
    """What a worker of the pool is doing."""

    WAITING = "waiting"
    """It waits for a slot of the cluster, or to be started again after a failure."""
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    LEAVING = "leaving"
    """It gets no new requests and completes those that it has."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker for people: `detail` says what it waits for, or why it leaves."""

    name: str
    state: WorkerState
    since_ns: int
    permanent: bool
    detail: str = ""

    @property
    def holds_a_slot(self) -> bool:
        """Whether it holds a slot of its own: one that is given back when it leaves."""
        return not self.permanent and self.state is not WorkerState.WAITING


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The workers of a pool and how many it should have."""

    wanted: int
    min_workers: int
    workers: tuple[WorkerStatus, ...]


Tell = Callable[[WorkerState, str], None]
"""Reports what a worker that is being hired is doing."""
Hire = Callable[[int, int, Tell], AbstractAsyncContextManager[W]]
"""Brings up worker `rollout-<index>` in its n-th incarnation, ready for requests, and gives everything back
when the context is closed. Raises OrchestratorError, in particular WorkerLostError.
"""


@dataclass(eq=False)
class _Seat:
    """An elastic worker, from the request for it until it has left."""

    index: int
    name: str
    why: str
    """Why it joins, then why it leaves."""
    status: WorkerStatus
    incarnation: int = 0
    has_joined: bool = False
    """Whether the present incarnation has joined the pool."""
    at_once: bool = False
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def is_leaving(self) -> bool:
        return self.status.state is WorkerState.LEAVING


class ElasticPool(Generic[W]):
    """Hires elastic workers for `pool` and lets them go. Belongs to one event loop."""

    def __init__(
        self,
        pool: WorkerPool[W],
        hire: Hire[W],
        max_restarts: int,
        on_event: Callable[[WorkerJoined | WorkerLeft | WorkerLost], None],
        clock: Clock,
    ) -> None:
        self._pool, self._hire, self._max_restarts = pool, hire, max_restarts
        self._on_event, self._clock = on_event, clock
        permanent = pool.permanent()
        self.min_workers = self._next_index = len(permanent)
        self._seats: list[_Seat] = []
        self._permanent = {worker.name: self._status(worker.name, True, True) for worker, _ in permanent}
        self._closed = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when `status` has changed."""
        pool.on_change = self._tell

    @property
    def wanted(self) -> int:
        """The number of workers that the pool should have."""
        return self.min_workers + len(self._staying())

    def status(self) -> PoolStatus:
        """All workers, with those that are waiting for a slot and those that are leaving."""
        for worker, ready in self._pool.permanent():
            before = self._permanent[worker.name]
            if ready != (before.state is WorkerState.RUNNING):
                self._permanent[worker.name] = self._status(worker.name, ready, True)
        return PoolStatus(
            self.wanted,
            self.min_workers,
            (*self._permanent.values(), *(seat.status for seat in self._seats)),
        )

    def grow(self, count: int, why: str) -> None:
        """Hire `count` more workers, each as soon as the cluster has a slot for it."""
        for _ in range(count):
            index, self._next_index = self._next_index, self._next_index + 1
            name = f"rollout-{index}"
            seat = _Seat(index, name, why, self._status(name, False, False))
            self._seats.append(seat)
            seat.task = asyncio.ensure_future(self._keep_hired(seat))
            seat.task.add_done_callback(functools.partial(self._vacate, seat))
        self._tell()

    def shrink(self, count: int, why: str, *, at_once: bool = False) -> None:
        """Let `count` elastic workers go: first those that have not joined yet, then the newest ones. They
        complete the requests that they have, unless `at_once`: then those go to other workers.

        Raises StateError if fewer than `min_workers` would be left.
        """
        staying = self._staying()
        if count > len(staying):
            raise StateError(
                f"{count} of {self.wanted} rollout workers cannot leave: at least {self.min_workers} must"
                " stay (rollout.min_workers)."
            )
        by_preference = sorted(staying, key=lambda seat: (seat.has_joined, -seat.index))
        for seat in by_preference[:count]:
            seat.why, seat.at_once = why, at_once or not seat.has_joined
            self._report(seat, WorkerState.LEAVING, why)
            seat.leave.set()
            if seat.at_once and seat.task is not None:
                seat.task.cancel()

    async def close(self) -> None:
        """Let all elastic workers go at once, without reporting it: the run ends."""
        self._closed = True
        tasks = [seat.task for seat in self._seats if seat.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _staying(self) -> list[_Seat]:
        return [seat for seat in self._seats if not seat.is_leaving]

    def _vacate(self, seat: _Seat, task: asyncio.Task[None]) -> None:
        """The task of a seat has ended: the worker has left, or nothing was hired in the end."""
        self._seats.remove(seat)
        if self._closed:
            return
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FailureBudgetExceededError):
            logger.warning("%s", error)
            seat.why = str(error)
        elif error is not None:  # every other error must reach the callers waiting for a worker
            self._pool.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            return
        abandoned = task.cancelled() and seat.has_joined
        self._on_event(WorkerLeft(seat.name, seat.why, self._pool.width, abandoned))
        self._tell()

    async def _keep_hired(self, seat: _Seat) -> None:
        """Hire a worker for the seat, again and again, until it may leave or has failed too often."""
        budget = FailureBudget(f"losses of {seat.name}", self._max_restarts)
        while True:
            try:
                async with self._hire(seat.index, seat.incarnation, self._teller(seat)) as worker:
                    seat.has_joined = True
                    self._report(seat, WorkerState.RUNNING, "")
                    self._on_event(WorkerJoined(seat.name, seat.why, self._pool.width + 1))
                    await self._pool.host(worker, seat.leave)
                return
            except OrchestratorError as error:
                if seat.is_leaving:
                    return
                self._prepare_next(seat, error, budget)
                await asyncio.sleep(RETRY_SECONDS)

    def _prepare_next(self, seat: _Seat, error: OrchestratorError, budget: FailureBudget) -> None:
        """Raises FailureBudgetExceededError if there is no next attempt."""
        lost = error if isinstance(error, WorkerLostError) else WorkerLostError(seat.name, str(error))
        if not seat.has_joined:  # otherwise the pool has reported it
            self._on_event(WorkerLost(seat.name, lost.reason))
        if not lost.node_died:
            budget.spend(lost)
        seat.has_joined, seat.incarnation = False, seat.incarnation + 1
        seat.why = "it was lost before and has been started again"
        self._report(seat, WorkerState.WAITING, lost.reason)

    def _teller(self, seat: _Seat) -> Tell:
        return lambda state, detail: self._report(seat, state, detail)

    def _report(self, seat: _Seat, state: WorkerState, detail: str) -> None:
        if not seat.is_leaving:
            seat.status = WorkerStatus(seat.name, state, self._clock.now_ns(), False, detail)
            self._tell()

    def _status(self, name: str, ready: bool, permanent: bool) -> WorkerStatus:
        idle = WorkerState.RESTARTING if permanent else WorkerState.WAITING
        state = WorkerState.RUNNING if ready else idle
        return WorkerStatus(name, state, self._clock.now_ns(), permanent)

    def _tell(self) -> None:
        if not self._closed:
            self.on_change()
