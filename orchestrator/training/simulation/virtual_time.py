"""An asyncio event loop whose time jumps to the next timer instead of waiting for it.

Everything that sleeps or times out on this loop happens in the right order, at once, and the same way each
time: one thread, no real I/O, ties broken by the order in which timers were set.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Every task waits and no timer is set: on a cluster the run would hang for ever."""


class _JumpingSelector(selectors.BaseSelector):
    """Answers "nothing is ready" at once, and tells how long the loop was prepared to wait."""

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
    """`loop.time()` starts at 0 and moves only when everything waits for a timer."""

    def __init__(self) -> None:
        self._virtual_seconds = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._virtual_seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # noqa: ANN401
        """Run `func` here and now: a thread would end at a time that differs from run to run."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whatever it raises belongs to whoever awaits it
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
