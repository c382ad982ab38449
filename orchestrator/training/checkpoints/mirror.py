"""Copies checkpoints to a store while training continues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from orchestrator.errors import CheckpointConflictError, CheckpointError
from orchestrator.training.checkpoints.store import CheckpointStore

logger = logging.getLogger(__name__)


class CheckpointMirror:
    """Copies one checkpoint at a time in a thread. If checkpoints are written faster than they can be copied,
    only the newest one is copied.

    A failed copy is logged, and the next checkpoint is tried. More than `failure_budget` consecutive failures
    are an error. Use it from one event loop only.
    """

    def __init__(self, store: CheckpointStore, failure_budget: int, retry_seconds: float) -> None:
        self.store = store
        self._budget, self._retry_seconds = failure_budget, retry_seconds
        self._failures = 0
        self._last: CheckpointError | None = None
        self._pending: Path | None = None
        self._copying: Path | None = None
        self._task: asyncio.Task[None] | None = None

    def offer(self, checkpoint: Path) -> None:
        """Schedule a copy of `checkpoint`. Raises CheckpointError if too many copies have failed,
        CheckpointConflictError if another process writes to the store.
        """
        self._raise_if_spent()
        self._pending = checkpoint
        if self._task is not None and self._task.done():
            self._task.result()  # failures to copy were handled, so an exception here is a bug
            self._task = None
        if self._task is None:
            self._task = asyncio.ensure_future(self._copy())

    def in_use(self) -> Collection[Path]:
        """Checkpoints that must stay on disk until they are in the store."""
        return [path for path in (self._pending, self._copying) if path is not None]

    async def flush(self) -> None:
        """Wait until the newest offered checkpoint is in the store. Raises the same errors as `offer`."""
        while True:
            if self._task is not None:
                await self._task
            self._raise_if_spent()
            if self._pending is None:
                return
            await asyncio.sleep(self._retry_seconds)
            self._task = asyncio.ensure_future(self._copy())

    async def _copy(self) -> None:
        while (checkpoint := self._pending) is not None:
            self._copying = checkpoint
            try:
                await asyncio.to_thread(self.store.put, checkpoint)
            except CheckpointError as error:
                self._failures, self._last = self._failures + 1, error
                logger.warning(
                    "%s was not copied (consecutive failure %d, %d are tolerated): %s",
                    checkpoint.name,
                    self._failures,
                    self._budget,
                    error,
                )
                return
            finally:
                self._copying = None
            self._failures = 0
            if self._pending == checkpoint:
                self._pending = None

    def _raise_if_spent(self) -> None:
        if isinstance(self._last, CheckpointConflictError):
            raise self._last
        if self._failures > self._budget:
            raise CheckpointError(
                f"checkpoints could not be copied {self._failures} times in a row; last: {self._last}"
            ) from self._last
