"""Stops a job in an orderly way at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Any

from orchestrator.errors import DrainedError, OrchestratorError
from orchestrator.training.loop import TrainingLoop


class StopSwitch:
    """Receives requests to stop a job from signals, budgets or a lost lease.

    state of the job                effect of a request to stop
    starting (Ray, actors)          the start is cancelled, because there is nothing to save yet
    training                        the loop writes a checkpoint before its next step, then raises the reason
    between two stages              the next stage does not start
    already finished                none: the run ends as done

    `ask` and `cancel` may be called from any thread, at any time.
    """

    def __init__(self) -> None:
        self._reason: OrchestratorError | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._drain_seconds: float | None = None
        self._loop: TrainingLoop | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._running: asyncio.Task[Any] | None = None
        self._cancelled_by: OrchestratorError | None = None

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self._reason is not None

    def raise_if_asked(self) -> None:
        """Raise the reason if a stop was requested."""
        if self._reason is not None:
            raise self._reason

    def ask(self, reason: OrchestratorError) -> None:
        """Ask the job to stop with a checkpoint and to raise `reason`. Only the first reason is used."""
        self._reason = self._reason or reason
        self._in_event_loop(self._apply)

    def cancel(self, reason: OrchestratorError) -> None:
        """Stop training immediately, without a new checkpoint. Training raises `reason`."""
        self._reason = self._reason or reason
        self._in_event_loop(lambda: self._cancel(reason))

    @contextlib.contextmanager
    def attached(self, drain_seconds: float) -> Generator[None]:
        """Apply requests on the current event loop while the body runs. If a requested stop takes longer than
        `drain_seconds`, training is cancelled.
        """
        self._event_loop, self._drain_seconds = asyncio.get_running_loop(), drain_seconds
        if self._reason is not None:
            self._apply()
        try:
            yield
        finally:
            self._event_loop = None

    @contextlib.contextmanager
    def starting(self) -> Generator[None]:
        """While the body runs there is nothing to save: a request cancels it, and its reason is raised."""
        self.raise_if_asked()
        task = asyncio.current_task()
        assert task is not None
        self._starting = task
        try:
            yield
        except asyncio.CancelledError:
            if self._reason is None or task.uncancel():
                raise  # the cancellation did not come from this switch
            raise self._reason from None
        finally:
            self._starting = None
        self.raise_if_asked()

    @contextlib.contextmanager
    def connected(self, loop: TrainingLoop) -> Generator[None]:
        """Pass requests to `loop` while the body runs it. If it is cancelled, the body raises the reason."""
        self._loop = loop
        if self._reason is not None:
            loop.request_stop(self._reason)
        self._running = asyncio.current_task()
        assert self._running is not None
        try:
            yield
        except asyncio.CancelledError:
            if self._cancelled_by is None or self._running.uncancel():
                raise  # the cancellation did not come from this switch
            raise self._cancelled_by from None
        finally:
            self._loop = self._running = None

    def _in_event_loop(self, act: Callable[[], None]) -> None:
        event_loop = self._event_loop
        if event_loop is None:
            act()  # the event loop does not run
        else:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                event_loop.call_soon_threadsafe(act)

    def _apply(self) -> None:
        assert self._reason is not None
        if self._starting is not None:
            self._starting.cancel()
        if self._loop is not None:
            self._loop.request_stop(self._reason)
        if self._event_loop is not None and self._drain_seconds is not None:
            seconds, self._drain_seconds = self._drain_seconds, None
            if isinstance(self._reason, DrainedError):
                late = DrainedError(
                    f"{self._reason} The current step and its checkpoint took longer than"
                    f" checkpoint.drain_seconds ({seconds:g} s), so the run stopped without a new checkpoint."
                )
                self._event_loop.call_later(seconds, self._cancel, late)

    def _cancel(self, reason: OrchestratorError) -> None:
        self._apply()
        if self._running is not None and self._cancelled_by is None:
            self._cancelled_by = reason
            self._running.cancel()
