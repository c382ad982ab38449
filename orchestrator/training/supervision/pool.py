"""A pool of workers of one role. Each worker runs one task at a time; a lost worker is replaced, and
its task goes to another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from orchestrator.errors import DataLostError, FailureBudgetExceededError, WorkerLostError

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


@dataclass(frozen=True, slots=True, order=True)
class _Free(Generic[W]):
    """A free worker. Workers are ordered by how long they have been free, then by index, so that the order
    does not depend on the order in which asyncio cancels tasks.
    """

    since: float
    index: int
    worker: W = field(compare=False)


class WorkerPool(Generic[W]):
    """Gives each task to the worker that has been free the longest.

    If a worker is lost, its task goes to the next free worker while `replace(worker)` builds a replacement.
    After more than `max_restarts` losses, everything that waits for a worker gets FailureBudgetExceededError.
    A task may run twice if its worker is lost after finishing it; the buffer admits a group only once.
    """

    def __init__(
        self,
        workers: list[W],
        replace: Callable[[W], Awaitable[W]],
        max_restarts: int,
        on_lost: OnLost,
    ) -> None:
        self._replace, self._max_restarts, self._on_lost = replace, max_restarts, on_lost
        self._workers = workers
        self._free = self._all_free()
        self._restarting: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self.restarts = 0
        """Number of workers lost so far."""
        self.width = len(workers)
        self._indices = {worker.name: index for index, worker in enumerate(workers)}

    async def start(self, ready: Callable[[W], Awaitable[object]]) -> None:
        """Wait until every worker is ready. A worker that is lost meanwhile is replaced.

        Raises FailureBudgetExceededError if too many are lost, and any other error of `ready`.
        """
        tasks = [asyncio.ensure_future(self._start_one(worker, ready)) for worker in self._workers]
        try:
            self._workers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._free = self._all_free()

    async def call(self, task: Callable[[W], Awaitable[T]]) -> T:
        """Run `task` on a worker. If that worker is lost, run it again on another one."""
        while True:
            worker = await self._acquire()
            try:
                result = await task(worker)
            except DataLostError:
                self._put_back(worker)
                raise
            except WorkerLostError as lost:
                self._restart_later(worker, lost)
            except BaseException:
                self._put_back(worker)
                raise
            else:
                self._put_back(worker)
                return result

    async def close(self) -> None:
        """Stop replacing workers."""
        for task in list(self._restarting):
            task.cancel()
        await asyncio.gather(*self._restarting, return_exceptions=True)

    async def _start_one(self, worker: W, ready: Callable[[W], Awaitable[object]]) -> W:
        lost: WorkerLostError | None = None
        while True:
            try:
                if lost is not None:
                    return await self._replace(worker)
                await ready(worker)
            except WorkerLostError as error:
                lost = error
                self._count(lost)
                logger.warning("%s while starting; it is being replaced", lost)
            else:
                return worker

    def _all_free(self) -> asyncio.PriorityQueue[_Free[W]]:
        free: asyncio.PriorityQueue[_Free[W]] = asyncio.PriorityQueue()
        for index, worker in enumerate(self._workers):
            free.put_nowait(_Free(0.0, index, worker))
        return free

    async def _acquire(self) -> W:
        """Wait for a free worker. Raises the error that made a replacement fail."""
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        getter = asyncio.ensure_future(self._free.get())
        try:
            await asyncio.wait({getter, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._give_back(getter)
            raise
        if self._failed.done():
            self._give_back(getter)
            self._failed.result()
        return (await getter).worker

    def _give_back(self, getter: asyncio.Future[_Free[W]]) -> None:
        if getter.done() and not getter.cancelled():
            self._free.put_nowait(getter.result())
        getter.cancel()

    def _put_back(self, worker: W) -> None:
        now = asyncio.get_running_loop().time()
        self._free.put_nowait(_Free(now, self._indices[worker.name], worker))

    def _count(self, lost: WorkerLostError) -> None:
        """Count a loss. Raises FailureBudgetExceededError if it exceeds the budget."""
        self.restarts += 1
        self._on_lost(lost)
        if self.restarts > self._max_restarts:
            exceeded = FailureBudgetExceededError(
                "workers lost", self.restarts, self._max_restarts, str(lost)
            )
            self._fail(exceeded)
            raise exceeded from lost

    def _restart_later(self, worker: W, lost: WorkerLostError) -> None:
        self._count(lost)
        logger.warning(
            "%s; its task goes to another worker (loss %d of %d tolerated)",
            lost,
            self.restarts,
            self._max_restarts,
        )
        restart = asyncio.ensure_future(self._restart(worker))
        self._restarting.add(restart)
        restart.add_done_callback(self._restarting.discard)

    async def _restart(self, worker: W) -> None:
        try:
            self._put_back(await self._replace(worker))
        except WorkerLostError as lost:
            with contextlib.suppress(FailureBudgetExceededError):  # raised to the waiting callers
                self._restart_later(worker, lost)
        except Exception as error:  # noqa: BLE001 - every error must reach the callers waiting for a worker
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # marked as retrieved: asyncio does not warn if no caller waits
