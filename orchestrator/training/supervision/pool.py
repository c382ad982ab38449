"""A pool of workers of one role: one task a worker, a lost worker replaced, its task given to another."""

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
    """Anything with a name; what it does is between the caller and it."""

    @property
    def name(self) -> str:
        """Stable over restarts: `rollout-0`."""
        ...


W = TypeVar("W", bound=Worker)
T = TypeVar("T")
OnLost = Callable[[WorkerLostError], None]


@dataclass(frozen=True, slots=True, order=True)
class _Free(Generic[W]):
    """A free worker, in the queue's order: free for longest, then by seat. So it does not depend on the order
    in which asyncio cancels tasks.
    """

    since: float
    seat: int
    worker: W = field(compare=False)


class WorkerPool(Generic[W]):
    """Gives each task to the worker that has been free the longest.

    If a worker is lost the task goes to the next free one, and `replace(worker)` makes its successor
    beside it. More than `max_restarts` losses over the life of the pool raise FailureBudgetExceededError
    to whoever waits for a task. A task may run twice, if a worker is lost after it finished: the buffer
    admits a group once.
    """

    def __init__(
        self,
        workers: list[W],
        replace: Callable[[W], Awaitable[W]],
        max_restarts: int,
        on_lost: OnLost,
    ) -> None:
        self._replace, self._max_restarts, self._on_lost = replace, max_restarts, on_lost
        self._free: asyncio.PriorityQueue[_Free[W]] = asyncio.PriorityQueue()
        self._restarting: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self.restarts = 0
        """Workers lost so far."""
        self.width = len(workers)
        self._seats = {worker.name: seat for seat, worker in enumerate(workers)}
        for seat, worker in enumerate(workers):
            self._free.put_nowait(_Free(0.0, seat, worker))

    async def call(self, task: Callable[[W], Awaitable[T]]) -> T:
        """Run `task` on a worker, and again on another if that one is lost."""
        while True:
            worker = await self._acquire()
            try:
                result = await task(worker)
            except DataLostError:
                self._put_back(worker)
                raise
            except WorkerLostError as lost:
                self._lose(worker, lost)
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

    async def _acquire(self) -> W:
        """The next free worker; raises what made a replacement fail."""
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
        self._free.put_nowait(_Free(now, self._seats[worker.name], worker))

    def _lose(self, worker: W, lost: WorkerLostError) -> None:
        self.restarts += 1
        self._on_lost(lost)
        if self.restarts > self._max_restarts:
            exceeded = FailureBudgetExceededError(
                "workers lost", self.restarts, self._max_restarts, str(lost)
            )
            self._fail(exceeded)
            raise exceeded from lost
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
            with contextlib.suppress(FailureBudgetExceededError):  # raised to those who wait for a worker
                self._lose(worker, lost)
        except Exception as error:  # noqa: BLE001 - whatever stops a replacement must reach those who wait for a worker
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # seen: asyncio need not warn if nobody waits for a worker any more
