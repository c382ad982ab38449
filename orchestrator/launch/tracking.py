"""A run in the tracker, from its start to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from orchestrator.clock import Clock
from orchestrator.config.run_config import RunConfig
from orchestrator.runs.directory import RunDirectory, RunState
from orchestrator.training.telemetry.tracker import Outcome, RunIdentity, Tracker
from orchestrator.training.telemetry.tracking import build_tracker

OUTCOMES: dict[RunState, Outcome] = {
    RunState.DONE: "done",
    RunState.BUDGET: "budget",
    RunState.DRAINED: "drained",
}
"""How an end is called in the tracker; every other end is a failure."""


@contextlib.contextmanager
def tracked(config: RunConfig, directory: RunDirectory, pipeline: str, clock: Clock) -> Generator[Tracker]:
    """The run's tracker: config and manifest go in first; the body says the rest; the state in the run
    directory is the outcome. A pipeline is the parent of its stages.
    """
    tracker = build_tracker(config.tracking, config.output_dir, clock)
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
        tracker.finish(OUTCOMES.get(directory.record().state, "failed"))
