"""Builds the tracker of a run from the `tracking` group. MLflow is only
imported on the tracker's own thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.training.telemetry.background import BackgroundTracker, History
from orchestrator.training.telemetry.config import TrackingConfig
from orchestrator.training.telemetry.mlflow_database import ensure_database
from orchestrator.training.telemetry.tracker import NullTracker, Tracker


def build_tracker(
    config: TrackingConfig,
    output_dir: Path,
    clock: Clock,
    history: History | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> Tracker:
    """Build the tracker of one run without starting it. With `uri: null`, MLflow's database and artifacts
    are stored under `output_dir`.
    """
    if config.backend == "none":
        return NullTracker()
    return BackgroundTracker(
        lambda: connect_mlflow(config, output_dir, clock), config.delivery, clock, history, on_problem
    )


def connect_mlflow(config: TrackingConfig, output_dir: Path, clock: Clock) -> Tracker:
    """Build the MLflow adapter, whose calls block on the server. The first call takes seconds for importing
    MLflow and creating its database.
    """
    # MLflow reads these when it is imported and for each request. Values set by the user have priority.
    # Its default of 7 retries with growing pauses would exceed the deadlines of `BackgroundTracker`,
    # which does the retries itself.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from orchestrator.training.telemetry.mlflow_tracker import MLflowTracker

    uri = config.uri or f"sqlite:///{(output_dir / 'mlflow.db').resolve()}"
    ensure_database(uri)
    artifacts = output_dir / "mlartifacts" if config.uri is None else None
    return MLflowTracker(uri, config.experiment, clock, artifact_root=artifacts)
