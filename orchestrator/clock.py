"""Clocks that return integer nanoseconds since the epoch (UTC), with a fake for tests and simulations."""

from __future__ import annotations

import time
from typing import Protocol

NANOSECONDS = 1_000_000_000


class Clock(Protocol):
    """A source of the current time."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch (UTC). Never decreases within a process."""
        ...


class SystemClock:
    """Reads the wall clock once and then follows the monotonic clock, so that an NTP adjustment cannot make a
    duration negative.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch (UTC)."""
        return self._offset_ns + time.monotonic_ns()


class FakeClock:
    """A clock that moves only when `advance` is called."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """The current fake time."""
        return self._now_ns

    def advance(self, ns: int) -> None:
        """Advance by `ns` nanoseconds. Raises ValueError if `ns` is negative."""
        if ns < 0:
            raise ValueError(f"a clock cannot go backwards: got {ns} ns")
        self._now_ns += ns
