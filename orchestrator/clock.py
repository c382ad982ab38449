"""Time as a port: integer nanoseconds since the epoch (UTC), so that a simulation can own it."""

from __future__ import annotations

import time
from typing import Protocol

NANOSECONDS = 1_000_000_000


class Clock(Protocol):
    """Where `now` comes from."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, UTC; never goes back within one process."""
        ...


class SystemClock:
    """The wall clock at its start, then the monotonic clock: a step of NTP can't make a span negative."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, UTC."""
        return self._offset_ns + time.monotonic_ns()


class FakeClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """The time it was last moved to."""
        return self._now_ns

    def advance(self, ns: int) -> None:
        """Move on by `ns` nanoseconds. Raises ValueError if `ns` is negative."""
        if ns < 0:
            raise ValueError(f"a clock does not go back: got {ns} ns")
        self._now_ns += ns
