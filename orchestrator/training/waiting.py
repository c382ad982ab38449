"""Detects that the run waits longer than usual, and reports for what, where and since when.

Waits happen inside `Waits.on(what, where)`. Each kind has its own history: a wait is reported when it has
taken three times as long as nine in ten of the last 50 of its kind, but never before 10 seconds. Until the
first of a kind has ended, it is reported after 60 seconds. The end of a reported wait is reported too. Of
many waits of one kind at the same time, three are reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Generator
from pathlib import Path
from statistics import median

from orchestrator.clock import NANOSECONDS, Clock
from orchestrator.training.events import WaitEnded, Waiting, WaitKind
from orchestrator.training.records import Batch, WeightVersion
from orchestrator.training.stages import LearnerStage, PublishedWeights, Span, Updated

logger = logging.getLogger(__name__)

REMEMBERED = 50
TIMES = 3.0
SHARE = 0.9
SHORTEST_SECONDS = 10.0
FIRST_SECONDS = 60.0
MOST_OF_A_KIND = 3
LEARNER = "the learner"

OnEvent = Callable[[Waiting | WaitEnded], None]


class Waits:
    """The waits of one attempt. Belongs to one event loop."""

    def __init__(self, on_event: OnEvent, clock: Clock) -> None:
        self._on_event, self._clock = on_event, clock
        self._past: dict[WaitKind, deque[float]] = {}
        self._reported: Counter[WaitKind] = Counter()
        """Open waits that were reported, by kind."""

    @contextlib.contextmanager
    def on(
        self,
        what: WaitKind,
        where: str,
        *,
        patience_seconds: float | None = None,
        describe: Callable[[], str] = lambda: "",
    ) -> Generator[None]:
        """The body of the `with` waits for `where` to do `what`.

        `patience_seconds` replaces the threshold from the history. `describe` returns details; it is
        called when the wait is reported.
        """
        since_ns, reported = self._clock.now_ns(), False

        def report() -> None:
            nonlocal reported
            if self._reported[what] >= MOST_OF_A_KIND:
                return
            reported = True
            self._reported[what] += 1
            self._tell(Waiting(what, where, since_ns, self.usual_seconds(what), describe()))

        patience = self.patience_seconds(what) if patience_seconds is None else patience_seconds
        timer = asyncio.get_running_loop().call_later(patience, report)
        try:
            yield
            seconds = (self._clock.now_ns() - since_ns) / NANOSECONDS
            self._past.setdefault(what, deque(maxlen=REMEMBERED)).append(seconds)
        finally:
            timer.cancel()
            if reported:
                self._reported[what] -= 1
                self._tell(WaitEnded(what, where, (self._clock.now_ns() - since_ns) / NANOSECONDS))

    def patience_seconds(self, what: WaitKind) -> float:
        """The duration after which a wait of this kind is reported."""
        past = sorted(self._past.get(what, ()))
        if not past:
            return FIRST_SECONDS
        return max(SHORTEST_SECONDS, TIMES * past[int(SHARE * (len(past) - 1))])

    def usual_seconds(self, what: WaitKind) -> float | None:
        """The median of the recent waits of this kind; None before the first has ended."""
        past = self._past.get(what)
        return median(past) if past else None

    def _tell(self, event: Waiting | WaitEnded) -> None:
        logger.log(logging.WARNING if isinstance(event, Waiting) else logging.INFO, "%s", event.message)
        self._on_event(event)


class WatchedLearner:
    """A `LearnerStage` whose calls are watched. Writing a snapshot is not, because nothing waits for it until
    the next checkpoint (see `Checkpointer`).
    """

    def __init__(self, learner: LearnerStage, waits: Waits) -> None:
        self._learner, self._waits = learner, waits

    async def update(self, batch: Batch) -> Updated:
        with self._waits.on(WaitKind.UPDATE, LEARNER):
            return await self._learner.update(batch)

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        with self._waits.on(WaitKind.PUBLISH, LEARNER):
            return await self._learner.publish(version)

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        with self._waits.on(WaitKind.CHECKPOINT, LEARNER):
            return await self._learner.save(directory, step)

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        with self._waits.on(WaitKind.CHECKPOINT, LEARNER):
            return await self._learner.snapshot(step)

    async def write(self, directory: Path) -> None:
        await self._learner.write(directory)

    async def load(self, directory: Path) -> None:
        with self._waits.on(WaitKind.RESTORE, LEARNER):
            await self._learner.load(directory)

    async def export(self, directory: Path) -> None:
        with self._waits.on(WaitKind.EXPORT, LEARNER):
            await self._learner.export(directory)

    async def rebuild(self) -> None:
        with self._waits.on(WaitKind.START, LEARNER):
            await self._learner.rebuild()
