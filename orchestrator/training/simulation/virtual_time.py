"""An asyncio event loop whose time jumps to the next timer instead of waiting for it.

Sleeps and timeouts on this loop happen in the right order, immediately, and reproducibly: there is one thread
and no real I/O, and timers for the same moment fire in the order in which they were set.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Every task waits and no timer is set. On a cluster the run would hang for ever."""


class _JumpingSelector(selectors.BaseSelector):
    """Immediately reports that nothing is ready, and passes on how long the loop was prepared to wait."""

    def __init__(self, waited: Callable[[float], None]) -> None:
        self._waited = waited
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map() or {}

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError("every task waits for another and no timer is set")
        self._waited(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and advances only when all tasks wait for a timer."""

    def __init__(self) -> None:
        self._virtual_seconds = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._virtual_seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # noqa: ANN401
        """Run `func` immediately in this thread, because a thread would end at a
        different time in each run.
        """
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the task that awaits the result handles it
            future.set_exception(error)
        return future

    def _advance(self, seconds: float) -> None:
        self._virtual_seconds += max(seconds, 0.0)


class VirtualClock:
    """A `Clock` that reads the running virtual loop; integer nanoseconds."""

    def now_ns(self) -> int:
        """Virtual nanoseconds since the start."""
        return round(asyncio.get_running_loop().time() * 1e9)


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a fresh virtual loop. Raises DeadlockError if it would never end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
