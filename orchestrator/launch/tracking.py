"""A run in the tracker, from its start to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import cast

from orchestrator.clock import Clock
from orchestrator.config.run_config import RunConfig
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState
from orchestrator.training.events import TrackingUnavailable, event_fields
from orchestrator.training.telemetry.tracker import MetricRow, Outcome, RunIdentity, Tracker
from orchestrator.training.telemetry.tracking import build_tracker


@contextlib.contextmanager
def tracked(
    config: RunConfig, directory: RunDirectory, pipeline: str, clock: Clock, notify: Callable[[str], None]
) -> Generator[Tracker]:
    """The run's tracker. Config, manifest and the metrics of earlier attempts that the server lacks are sent
    first, the body logs the rest, and the state in the run directory is the outcome. A pipeline is the parent
    of its stages. `notify` shows a person, once, that nothing is tracked at the moment and why."""

    def on_problem(reason: str) -> None:
        event = TrackingUnavailable(reason)
        directory.append_event(event.kind, event_fields(event), clock.now_ns())
        notify(event.message)

    def history() -> Iterator[MetricRow]:
        return (MetricRow(line.step, line.time_ns, line.metrics) for line in directory.read_metrics())

    tracker = build_tracker(config.tracking, config.output_dir, clock, history, on_problem)
    tracker.start(
        RunIdentity(
            run_id=directory.run_id,
            job=config.job,
            purpose=config.purpose,
            team=config.team,
            project=config.project,
            parent_run_id=pipeline or None,
        )
    )
    tracker.log_params(config.to_json())
    tracker.log_artifact(directory.config)
    tracker.log_artifact(directory.manifest)
    try:
        yield tracker
    finally:
        tracker.finish(_outcome(directory.record().state))


def _outcome(state: RunState) -> Outcome:
    """A final state is what the tracker calls an outcome; a run that ends in any other one has failed."""
    return cast("Outcome", state.value) if state.is_final else "failed"
