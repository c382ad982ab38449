"""A pool of workers of one role. Each worker runs as many tasks as its capacity allows; a lost worker is
replaced, and its tasks go to other workers. Further workers may join and leave while tasks run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from orchestrator.errors import FailureBudgetExceededError, WorkerLostError

logger = logging.getLogger(__name__)


class Worker(Protocol):
    """Any object with a name. The tasks decide which methods they call on a worker."""

    @property
    def name(self) -> str:
        """`<role>-<index>`, unchanged by restarts."""
        ...


W = TypeVar("W", bound=Worker)
T = TypeVar("T")
OnLost = Callable[[WorkerLostError], None]


@dataclass(slots=True, eq=False)
class _Member(Generic[W]):
    """A place of the pool, whose worker may be replaced."""

    worker: W
    index: int
    life: int = 0
    """Rises when the worker is lost."""
    is_ready: bool = True
    is_leaving: bool = False
    load: int = 0
    """Total size of the tasks that the worker runs."""
    since: float = 0.0
    """When a task of the worker ended last."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `load` falls to 0."""
    lost: asyncio.Future[WorkerLostError] | None = None
    """Of a worker that joined later: done when it is lost. The pool does not replace it."""

    def reduce(self, size: int) -> None:
        self.load -= size
        if not self.load:
            self.idle.set()


class Loan(Generic[W]):
    """A worker that a task may use, until the `with` statement of `WorkerPool.borrow` ends."""

    def __init__(self, member: _Member[W], size: int, freed: Callable[[], None]) -> None:
        self._member, self._left, self._freed = member, size, freed
        self._life = member.life
        self.worker = member.worker

    @property
    def is_lost(self) -> bool:
        """Whether the worker was lost since it was borrowed."""
        return self._life != self._member.life

    def give_back(self, size: int) -> None:
        """Return a part of the worker's capacity, because that part of the task is done."""
        size = min(size, self._left)
        self._left -= size
        if not self.is_lost:
            self._member.reduce(size)
            self._freed()

    def end(self) -> None:
        """Return all that is left of the worker's capacity."""
        if not self.is_lost:
            self._member.since = asyncio.get_running_loop().time()
        self.give_back(self._left)


class WorkerPool(Generic[W]):
    """Gives each task to the worker with the least to do; among equals, to the one that has been free the
    longest. A worker gets another task as long as the sizes of its tasks add up to less than `capacity`.

    If a worker is lost, its tasks go to other workers while `replace(worker)` builds a replacement. After
    more than `max_restarts` losses, everything that waits for a worker gets FailureBudgetExceededError.
    A task may run twice if its worker is lost after finishing it; the buffer admits a group only once.
    """

    def __init__(
        self,
        workers: list[W],
        replace: Callable[[W], Awaitable[W]],
        max_restarts: int,
        on_lost: OnLost,
        capacity: int = 1,
    ) -> None:
        self._replace, self._max_restarts, self._on_lost = replace, max_restarts, on_lost
        self._members = [_Member(worker, index) for index, worker in enumerate(workers)]
        self._capacity = capacity
        self._restarting: set[asyncio.Task[None]] = set()
        self._error: Exception | None = None
        self._next = asyncio.Lock()
        """Held by the first of those who wait for a worker, so that they are served in order."""
        self._changed = asyncio.Event()
        self._next_index = len(workers)
        self.restarts = 0
        """Number of workers lost so far, without hosted ones."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a worker joined or left, was lost or replaced."""

    @property
    def width(self) -> int:
        """The number of workers, with those that are being replaced and without those that are leaving."""
        return sum(not member.is_leaving for member in self._members)

    async def start(self, ready: Callable[[W], Awaitable[object]]) -> None:
        """Wait until every worker is ready. A worker that is lost meanwhile is replaced.

        Raises FailureBudgetExceededError if too many are lost, and any other error of `ready`.
        """
        tasks = [asyncio.ensure_future(self._start_one(member, ready)) for member in self._members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def ready(self) -> list[W]:
        """The workers that are not being replaced."""
        return [member.worker for member in self._members if member.is_ready]

    def permanent(self) -> list[tuple[W, bool]]:
        """The workers that the pool replaces, and whether each of them is ready."""
        return [(member.worker, member.is_ready) for member in self._members if member.lost is None]

    async def call(self, task: Callable[[W], Awaitable[T]]) -> T:
        """Run `task`, of size 1, on a worker. If that worker is lost, run it again on another one."""
        while True:
            async with self.borrow() as loan:
                return await task(loan.worker)

    @contextlib.asynccontextmanager
    async def borrow(self, size: int = 1) -> AsyncGenerator[Loan[W]]:
        """Wait for a worker and let the body use it for a task of this size. A WorkerLostError that the body
        raises ends here: the worker is replaced, and the caller repeats what is left of the task.

        Raises the error that made a replacement fail.
        """
        member = await self._acquire(size)
        loan = Loan(member, size, self._changed.set)
        try:
            yield loan
        except WorkerLostError as lost:
            if not loan.is_lost:  # otherwise another task has already reported it
                self._lose(member, lost)
        finally:
            loan.end()

    async def host(self, worker: W, leave: asyncio.Event) -> None:
        """Let one more worker run tasks, until `leave` is set and the tasks that it runs then have ended. If
        the caller is cancelled, the worker leaves at once, and its tasks go to other workers when they fail.

        Raises WorkerLostError if the worker is lost; it is not replaced.
        """
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[WorkerLostError] = loop.create_future()
        member = _Member(worker, self._next_index, since=loop.time(), lost=lost)
        self._next_index += 1
        self._members.append(member)
        self._tell()
        try:
            await _either(leave, lost)
            member.is_leaving = True
            self._tell()
            if member.load:
                member.idle.clear()
                await _either(member.idle, lost)
            if lost.done():
                raise lost.result()
        finally:
            member.life += 1
            if member in self._members:
                self._members.remove(member)
            self._tell()

    def report_lost(self, worker: W, lost: WorkerLostError) -> None:
        """Treat a hosted worker as lost, although no task has noticed. Does nothing if it is not hosted."""
        for member in list(self._members):
            if member.worker is worker and member.lost is not None:
                self._lose(member, lost)

    async def close(self) -> None:
        """Stop replacing workers."""
        for task in list(self._restarting):
            task.cancel()
        await asyncio.gather(*self._restarting, return_exceptions=True)

    async def _start_one(self, member: _Member[W], ready: Callable[[W], Awaitable[object]]) -> None:
        lost: WorkerLostError | None = None
        while True:
            try:
                if lost is not None:
                    member.worker = await self._replace(member.worker)
                else:
                    await ready(member.worker)
            except WorkerLostError as error:
                lost = error
                self._count(lost)
                logger.warning("%s while starting; it is being replaced", lost)
            else:
                return

    async def _acquire(self, size: int) -> _Member[W]:
        async with self._next:
            while True:
                if self._error is not None:
                    raise self._error
                free = [each for each in self._members if self._is_free(each)]
                if free:
                    member = min(free, key=lambda each: (each.load, each.since, each.index))
                    member.load += size
                    return member
                self._changed.clear()
                await self._changed.wait()

    def _is_free(self, member: _Member[W]) -> bool:
        return member.is_ready and not member.is_leaving and member.load < self._capacity

    def _count(self, lost: WorkerLostError) -> None:
        """Count a loss. Raises FailureBudgetExceededError if it exceeds the budget."""
        self.restarts += 1
        self._on_lost(lost)
        if self.restarts > self._max_restarts:
            exceeded = FailureBudgetExceededError(
                "workers lost", self.restarts, self._max_restarts, str(lost)
            )
            self.fail(exceeded)
            raise exceeded from lost

    def _lose(self, member: _Member[W], lost: WorkerLostError) -> None:
        if member.lost is None:
            self._restart_later(member, lost)
        else:
            logger.warning("%s; its tasks go to other workers", lost)
            member.life += 1
            self._members.remove(member)
            member.lost.set_result(lost)
            self._on_lost(lost)

    def _restart_later(self, member: _Member[W], lost: WorkerLostError) -> None:
        member.life += 1
        member.is_ready, member.load = False, 0
        self._count(lost)
        logger.warning(
            "%s; its tasks go to other workers (loss %d of %d tolerated)",
            lost,
            self.restarts,
            self._max_restarts,
        )
        restart = asyncio.ensure_future(self._restart(member))
        self._restarting.add(restart)
        restart.add_done_callback(self._restarting.discard)
        self._tell()

    async def _restart(self, member: _Member[W]) -> None:
        try:
            member.worker = await self._replace(member.worker)
        except WorkerLostError as lost:
            with contextlib.suppress(FailureBudgetExceededError):  # raised to the waiting callers
                self._restart_later(member, lost)
        except Exception as error:  # noqa: BLE001 - every error must reach the callers waiting for a worker
            self.fail(error)
        else:
            member.since = asyncio.get_running_loop().time()
            member.is_ready = True
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self.on_change()

    def fail(self, error: Exception) -> None:
        """Raise `error` to everything that waits for a worker, now or later."""
        self._error = self._error or error
        self._changed.set()


async def _either(event: asyncio.Event, future: asyncio.Future[WorkerLostError]) -> None:
    """Wait until the event is set or the future is done."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting, future}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
