"""A tracker that never blocks and never fails: its own thread calls the wrapped tracker.

    loop --log--> bounded queue in memory --thread, every `interval_seconds`--> wrapped tracker --> server
                                             ^
    metrics.jsonl --what the server lacks----+   when the run is opened, and before it is closed

- The wrapped tracker is also *built* on the thread, so that importing MLflow and migrating its
  database do not delay the run.
- Metrics of several steps are sent in one request, before everything else: an unavailable artifact
  store does not delay them.
- An unavailable server is tried again after `first_retry_seconds`, twice that, and so on up to
  `max_retry_seconds`; meanwhile records wait in the queue, in order. If it is full, the oldest are dropped.
- `metrics.jsonl` is the source of truth (`history`). When the run is opened, and again before it is closed,
  the thread passes all its rows to the wrapped tracker, which skips the steps that the server has. Metrics
  that an earlier attempt could not send, or that were dropped during an outage, therefore arrive late
  instead of never.
- `finish` waits until everything is sent, at most `finish_seconds`, then reports how many records were lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.clock import Clock
from orchestrator.training.telemetry.config import DeliveryConfig
from orchestrator.training.telemetry.tracker import (
    MetricRow,
    Outcome,
    RunIdentity,
    Tracker,
    TrackerUnavailableError,
)

logger = logging.getLogger(__name__)

History = Callable[[], Iterable[MetricRow]]
"""Reads all metric rows of the run, from all its attempts."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the wrapped tracker. Only `rollouts` may be dropped to make room; failed
    uploads go to the end of the queue.
    """

    kind: Literal["metadata", "artifact", "rollouts"]
    what: str
    apply: Callable[[Tracker], None]


class BackgroundTracker:
    """Wraps the tracker that `make` builds. No method raises, and only `finish` waits. An instance is used
    once: `start`, calls, `finish`.

    `history` reads the rows of metrics.jsonl; None if there is no such file. `on_problem` is called at most
    once per attempt, on the tracker's thread, with the reason why tracking currently fails.
    """

    def __init__(
        self,
        make: Callable[[], Tracker],
        delivery: DeliveryConfig,
        clock: Clock,
        history: History | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._make, self._delivery, self._clock = make, delivery, clock
        self._history, self._on_problem = history, on_problem
        self._problem_reported = False
        self._caught_up = False
        self._changed = threading.Condition()
        # Everything below is guarded by `_changed`.
        self._rows: deque[MetricRow] = deque()
        self._calls: deque[_Call] = deque()
        self._in_flight = 0
        self._lost = 0
        self._lost_rows = 0
        self._outcome: Outcome | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> int:
        """Number of records that were dropped, rejected or never sent."""
        with self._changed:
            return self._lost + self._lost_rows

    def start(self, identity: RunIdentity) -> None:
        """Start the thread, which opens the run first."""
        self._thread = threading.Thread(target=self._work, args=(identity,), name="tracker", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log_rows([MetricRow(step, self._clock.now_ns(), dict(metrics))])

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        with self._changed:
            if self._ended or self._outcome is not None:
                self._lost_rows += len(rows)
                return
            self._rows.extend(rows)
            self._bound_rows()
            self._changed.notify_all()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._put(_Call("metadata", "the parameters", lambda tracker: tracker.log_params(params)))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file with its contents at the time of the upload."""
        self._put(_Call("artifact", f"{path.name}", lambda tracker: tracker.log_artifact(path, folder)))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._put(
            _Call("rollouts", f"rollouts of step {step}", lambda tracker: tracker.log_rollouts(step, rows))
        )

    def set_tag(self, key: str, value: str) -> None:
        self._put(_Call("metadata", f"the tag {key}", lambda tracker: tracker.set_tag(key, value)))

    def finish(self, outcome: Outcome) -> None:
        """Close the run once everything is sent. Blocks up to the deadline, so an event
        loop must call it in a thread.
        """
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()
            if self._thread is not None:
                self._changed.wait_for(lambda: self._ended, self._delivery.finish_seconds)
            self._abandon()
            lost = self._lost + self._lost_rows
        if lost:
            logger.warning(
                "tracking: %d records did not reach the tracking server; metrics.jsonl has all metrics, and "
                "resuming the run sends them",
                lost,
            )

    # -- the queue (called with the lock held)

    def _put(self, call: _Call) -> None:
        with self._changed:
            if self._ended or self._outcome is not None:
                self._lost += 1
                return
            self._calls.append(call)
            self._bound_calls()
            self._changed.notify_all()

    def _bound_rows(self) -> None:
        while len(self._rows) > self._delivery.capacity:
            self._rows.popleft()
            self._lost_rows += 1

    def _bound_calls(self) -> None:
        """Drop the oldest rollouts. If none are left the queue grows, because a run has few
        parameters, tags and artifacts.
        """
        if len(self._calls) <= self._delivery.capacity:
            return
        for index, call in enumerate(self._calls):
            if call.kind == "rollouts":
                del self._calls[index]
                self._lost += 1
                return

    def _abandon(self) -> None:
        """Stop sending. Records that are still queued are lost."""
        self._lost += self._in_flight + len(self._rows) + len(self._calls)
        self._in_flight = 0
        self._rows.clear()
        self._calls.clear()
        self._ended = True
        self._changed.notify_all()

    # -- the thread

    def _work(self, identity: RunIdentity) -> None:
        tracker: Tracker | None = None
        backoff = 0.0
        while self._wait(backoff):
            try:
                tracker = tracker or self._open(identity)
                if not self._caught_up:
                    self._catch_up(tracker)
                    self._caught_up = True
                self._send_rows(tracker)
                self._send_calls(tracker)
                self._close(tracker)
                backoff = 0.0
            except TrackerUnavailableError as error:
                self._report_problem(f"{error}")
                backoff = min(
                    backoff * 2 or self._delivery.first_retry_seconds, self._delivery.max_retry_seconds
                )
            except Exception as error:  # noqa: BLE001  training continues without a tracker if opening or closing a run fails
                self._report_problem(f"stopped: {error}")
                with self._changed:
                    self._abandon()

    def _wait(self, backoff: float) -> bool:
        """Wait until the next records are sent or the server is tried again. Returns False at the end."""
        with self._changed:
            if backoff:
                pause = self._delivery.first_retry_seconds if self._outcome else backoff
                asked_to_close = self._outcome is not None
                self._changed.wait_for(
                    lambda: self._ended or (self._outcome is not None) != asked_to_close, pause
                )
            elif self._outcome is None:
                self._changed.wait_for(
                    lambda: self._ended or self._outcome is not None, self._delivery.interval_seconds
                )
            return not self._ended

    def _open(self, identity: RunIdentity) -> Tracker:
        tracker = self._make()
        tracker.start(identity)
        return tracker

    def _report_problem(self, reason: str) -> None:
        logger.warning("tracking: %s", reason)
        if self._on_problem is not None and not self._problem_reported:
            self._problem_reported = True
            self._on_problem(reason)

    def _catch_up(self, tracker: Tracker) -> None:
        """Send the rows of metrics.jsonl that the server lacks."""
        if self._history is None:
            return
        try:
            tracker.log_rows(list(self._history()))
        except TrackerUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  an unreadable file or a rejection must not stop the run
            logger.warning("tracking: metrics.jsonl was not sent: %s", error)
        else:
            with self._changed:
                self._lost_rows = 0

    def _send_rows(self, tracker: Tracker) -> None:
        with self._changed:
            rows = list(self._rows)
            self._rows.clear()
            self._in_flight = len(rows)
        if not rows:
            return
        try:
            tracker.log_rows(rows)
        except TrackerUnavailableError:
            with self._changed:
                if not self._ended:
                    self._rows.extendleft(reversed(rows))
                    self._in_flight = 0
                    self._bound_rows()
            raise
        except Exception as error:  # noqa: BLE001  a bug or rejection in the tracker must not stop the run
            self._drop("metrics", len(rows), error)
        self._landed()

    def _send_calls(self, tracker: Tracker) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    return
                call = self._calls.popleft()
                self._in_flight = 1
            try:
                call.apply(tracker)
            except TrackerUnavailableError:
                self._put_back(call)
                raise
            except Exception as error:  # noqa: BLE001  a bug or rejection in the tracker must not stop the run
                self._drop(call.what, 1, error)
            self._landed()

    def _put_back(self, call: _Call) -> None:
        """Metadata keeps its place, because the last value of a tag must win;
        uploads go to the end of the queue.
        """
        with self._changed:
            if self._ended:
                return
            self._in_flight = 0
            if call.kind == "metadata":
                self._calls.appendleft(call)
            else:
                self._calls.append(call)

    def _drop(self, what: str, records: int, error: Exception) -> None:
        logger.warning("tracking: %s dropped: %s", what, error)
        with self._changed:
            if not self._ended:
                self._lost += records

    def _landed(self) -> None:
        with self._changed:
            self._in_flight = 0

    def _close(self, tracker: Tracker) -> None:
        with self._changed:
            outcome = self._outcome
            if outcome is None or self._rows or self._calls:
                return
        self._catch_up(tracker)
        tracker.finish(outcome)
        with self._changed:
            self._abandon()
