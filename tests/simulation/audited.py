"""Simulated runs whose directory holds what a real run writes, so that they can be audited."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.launch.observer import RunObserver
from orchestrator.runs.audit.account import Audit
from orchestrator.runs.audit.auditor import audit_run
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.events import TrainingEvent
from orchestrator.training.group_log import GroupRecord
from orchestrator.training.records import StepReport
from orchestrator.training.simulation.run import Simulation, SimulationSettings, Stop, Trace, simulate
from orchestrator.training.telemetry.training_health import LearningSignal, TrainingHealth
from orchestrator.training.usage import SpoolSink


class _Silent:
    """Stands for a tracker and a live view."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class RecordingTrace(Trace):
    """A trace that also writes the files of a run, through the real observer. `killed_at` raises KilledError
    instead of reporting that step.
    """

    def __init__(self, clock: Clock, run: RunDirectory, steps: int, killed_at: int | None) -> None:
        super().__init__(clock)
        health = TrainingHealth(LearningSignal(imitates=False, group_relative=True), steps)
        silent = cast(Any, _Silent())
        self._files = RunObserver(run, silent, silent, lambda: None, None, health, lambda: None, clock)
        self._killed_at = killed_at

    def on_step(self, report: StepReport) -> None:
        if report.step == self._killed_at:
            raise KilledError
        super().on_step(report)
        self._files.on_step(report)

    def on_event(self, event: TrainingEvent) -> None:
        super().on_event(event)
        self._files.on_event(event)

    def on_groups(self, record: GroupRecord) -> None:
        super().on_groups(record)
        self._files.on_groups(record)


class KilledError(Exception):
    """Stands for a SIGKILL: nothing is written any more."""


def run_recorded(
    settings: SimulationSettings,
    directory: Path,
    *,
    attempt: int = 1,
    stop: Stop | None = None,
    killed_at: int | None = None,
    meanwhile: Callable[[Simulation], Awaitable[None]] | None = None,
) -> Simulation | None:
    """Run one attempt, with `meanwhile` beside it; None if it was stopped or killed."""
    run = RunDirectory(directory)
    (directory / "ledger").mkdir(parents=True, exist_ok=True)
    sink = SpoolSink(directory / "ledger" / f"{attempt}-rollout.jsonl")
    try:
        with contextlib.suppress(KilledError, OrchestratorError):
            return simulate(
                settings,
                directory,
                resume=attempt > 1,
                stop=stop,
                observe=lambda clock: RecordingTrace(clock, run, settings.steps, killed_at),
                sink=sink,
                meanwhile=meanwhile,
            )
        return None
    finally:
        sink.close()


def audited(directory: Path) -> Audit:
    return audit_run(RunDirectory(directory), running=False)


def messages(audit: Audit) -> Sequence[str]:
    return [violation.message for violation in audit.violations]
