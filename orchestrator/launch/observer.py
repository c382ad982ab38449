"""Reports the progress of a run to its directory, its tracker and the live view."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from orchestrator.capacity.utilisation import Utilisation
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, RunNotFoundError
from orchestrator.ledger.meter import Spent
from orchestrator.ledger.money import AMOUNT_PLACES, hours, rounded
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import WaitRecord
from orchestrator.training.events import (
    Restored,
    TrainingEvent,
    WaitEnded,
    Waiting,
    WaitKind,
    event_fields,
)
from orchestrator.training.group_log import GroupRecord, record_fields
from orchestrator.training.records import StepReport
from orchestrator.training.supervision.elastic import PoolStatus
from orchestrator.training.telemetry.tracker import Tracker
from orchestrator.training.telemetry.training_health import TrainingHealth

logger = logging.getLogger(__name__)


class LiveView(Protocol):
    """Shows progress."""

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        """A step ended."""
        ...

    def message(self, text: str) -> None:
        """Show a line of text."""
        ...


class RunObserver:
    """An `Observer` that forwards to all three. It never waits for a network or a database."""

    def __init__(
        self,
        directory: RunDirectory,
        tracker: Tracker,
        view: LiveView,
        spent: Callable[[], Spent | None],
        utilisation: Utilisation | None,
        health: TrainingHealth,
        step_ended: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._directory, self._tracker, self._view = directory, tracker, view
        self._spent, self._step_ended, self._clock = spent, step_ended, clock
        self._utilisation, self._health = utilisation, health
        self._tokens = 0.0
        self._first_accuracy: float | None = None
        self._waits: dict[tuple[WaitKind, str], WaitRecord] = {}

    def on_step(self, report: StepReport) -> None:
        """Write the metrics to the run directory, track them and show them."""
        self._step_ended()
        spent = self._spent()
        self._tokens += report.metrics.get("rollout/tokens", 0.0)
        used = self._utilisation.metrics(report) if self._utilisation else {}
        metrics = {**report.metrics, **used, **self._cost_metrics(report, spent)}
        self._directory.append_metrics(report.step, metrics, self._clock.now_ns())
        if report.routing:
            self._directory.append_routing(report.step, report.routing)
        self._tracker.log_metrics(report.step, metrics)
        cost = None if spent is None else rounded(spent.amount, AMOUNT_PLACES)
        self._view.update(StepReport(report.step, metrics), cost)
        warning = self._health.observe(report.step, metrics)
        if warning is not None:
            self._tracker.set_tag("training_warning", warning.problem)
            self.on_event(warning)

    def on_budget_warning(self, text: str) -> None:
        """Record and show that a budget has crossed a threshold."""
        self._view.message(text)
        self._tracker.set_tag("budget", text)
        self._directory.append_event("budget_warning", {"warning": text}, self._clock.now_ns())

    def on_event(self, event: TrainingEvent) -> None:
        """Append the event to events.jsonl, and show its message if it has one."""
        if isinstance(event, Waiting | WaitEnded):
            self._on_wait(event)
            return
        self._directory.append_event(event.kind, event_fields(event), self._clock.now_ns())
        if isinstance(event, Restored):
            # At step 0 the evaluation before the first step is repeated, so its row is dropped too.
            self._directory.drop_metrics_after(event.step or -1)
            self._health.restart((line.step, line.metrics) for line in self._directory.read_metrics())
        if event.message:
            self._view.message(event.message)

    def _on_wait(self, event: Waiting | WaitEnded) -> None:
        """Keep the waits in state.json up to date. If that fails the run goes on: the disk may
        be what it waits for.
        """
        if isinstance(event, Waiting):
            self._waits[event.what, event.where] = WaitRecord(
                event.what.value, event.where, event.since_ns, event.usual_seconds, event.message
            )
        else:
            self._waits.pop((event.what, event.where), None)
        try:
            self._directory.append_event(event.kind, event_fields(event), self._clock.now_ns())
            self._directory.write_waiting(tuple(self._waits.values()))
        except (OSError, RunNotFoundError) as refused:
            logger.warning("the run directory does not say what the run waits for: %s", refused)
        self._view.message(event.message)

    def on_workers(self, status: PoolStatus) -> None:
        """Write the rollout workers to the run directory. If that fails the run goes on."""
        try:
            self._directory.write_workers(dataclasses.asdict(status))
        except (OSError, OrchestratorError) as refused:
            logger.warning("the run directory does not show the rollout workers: %s", refused)

    def on_groups(self, record: GroupRecord) -> None:
        """Add a line to groups.jsonl."""
        self._directory.append_groups(record_fields(record))

    def on_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the rollouts as a table in the tracker."""
        self._tracker.log_rollouts(step, rows)

    def _heldout_gain(self, report: StepReport) -> float:
        """How much held-out accuracy rose since the run's first evaluation; 0 at a step without one."""
        accuracy = report.metrics.get("accuracy/heldout")
        if accuracy is None:
            return 0.0
        if self._first_accuracy is None:
            self._first_accuracy = accuracy
        return accuracy - self._first_accuracy

    def _cost_metrics(self, report: StepReport, spent: Spent | None) -> dict[str, float]:
        gain = self._heldout_gain(report)
        if spent is None:
            return {}
        # Trackers only accept floats. The exact amounts are in the ledger.
        cost = float(spent.amount)
        metrics = {"cost/usd": cost, "cost/accelerator_hours": float(hours(spent.ns))}
        if gain > 0:
            metrics["cost/usd_per_heldout_point"] = cost / (100 * gain)
        if self._tokens:
            metrics["cost/usd_per_million_tokens"] = cost / self._tokens * 1e6
        return metrics
