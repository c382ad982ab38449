"""The MLflow adapter: the only module that imports mlflow. The import takes seconds and should happen
on the thread of `background`.

It uses `MlflowClient` with explicit run ids instead of an active run, so one process can track
several runs. Runs are found by their tag `orchestrator.run_id`, which is how a resume continues a run
and how a stage finds its pipeline.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param
from mlflow.exceptions import MlflowException

from orchestrator.clock import Clock
from orchestrator.training.telemetry.tracker import (
    MetricRow,
    Outcome,
    RunIdentity,
    TrackerRefusedError,
    TrackerUnavailableError,
    flatten,
    tracking_key,
)

RUN_ID_TAG = "orchestrator.run_id"
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
STATUS: dict[Outcome, str] = {"done": "FINISHED", "failed": "FAILED", "budget": "KILLED", "drained": "KILLED"}

# Limits of MLflow's own API.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
PARAM_CHARACTERS = 6000
TABLES_LISTED = 64
"""The tag that makes the UI show tables is limited to 8,000 characters."""

RETRYABLE_4XX = {401, 403, 408, 425, 429}
"""A token that is being renewed, a timeout, a rate limit."""


class MLflowTracker:
    """Tracks one run in MLflow.

    `artifact_root` is the artifact location of a new experiment; None leaves the choice to the server.
    """

    def __init__(self, uri: str, experiment: str, clock: Clock, artifact_root: Path | None = None) -> None:
        self._uri, self._experiment_name, self._clock = uri, experiment, clock
        self._artifact_root = artifact_root
        self._open: _OpenRun | None = None

    def start(self, identity: RunIdentity) -> None:
        """Open the run: a new one, or the one tagged with this `run_id`."""
        with _classified("start the run"):
            # MLflow logs every migration of a new database, which would disrupt the
            # progress view on a terminal.
            for name in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(name).setLevel(logging.WARNING)
            client = MlflowClient(tracking_uri=self._uri)
            experiment_id = _experiment(client, self._experiment_name, self._artifact_root)
            mlflow_id = _find(client, experiment_id, identity.run_id)
            reopened = mlflow_id is not None
            if mlflow_id is None:
                mlflow_id = client.create_run(
                    experiment_id, tags=_tags(identity), run_name=identity.run_id
                ).info.run_id
            else:
                client.update_run(mlflow_id, status="RUNNING")
            self._open = _OpenRun(client, experiment_id, mlflow_id, reopened, identity.parent_run_id)
            self._open.link_parent()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log_rows([MetricRow(step, self._clock.now_ns(), metrics)])

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        """Log the metrics of several steps in as few requests as MLflow allows."""
        run = self._run()
        with _classified("log metrics"):
            run.link_parent()
            metrics = run.new_metrics(rows)
            for start in range(0, len(metrics), METRICS_A_BATCH):
                batch = metrics[start : start + METRICS_A_BATCH]
                try:
                    run.client.log_batch(run.mlflow_id, metrics=batch)
                except MlflowException:
                    run.raise_if_deleted()
                    raise
                run.logged(batch)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the resolved config under dotted names. Parameters are immutable in MLflow, so those that
        the run already has are skipped.
        """
        run = self._run()
        with _classified("log parameters"):
            known = run.client.get_run(run.mlflow_id).data.params
            fresh = [
                Param(tracking_key(name), value[:PARAM_CHARACTERS])
                for name, value in flatten(params).items()
                if tracking_key(name) not in known
            ]
            for start in range(0, len(fresh), PARAMS_A_BATCH):
                run.client.log_batch(run.mlflow_id, params=fresh[start : start + PARAMS_A_BATCH])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file. Raises TrackerRefusedError if it does not exist."""
        run = self._run()
        if not path.is_file():
            raise TrackerRefusedError(f"artifact {path} is not a file")
        with _classified(f"upload {path.name}"):
            run.client.log_artifact(run.mlflow_id, str(path), folder or None)

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `rollouts/step-<step>.json`, in the format that MLflow shows as a table
        (and `mlflow.load_table` reads).

        Each step is one small file, written without pandas and without reading older ones back, which
        `MlflowClient.log_table` would do.
        """
        run = self._run()
        path = f"rollouts/step-{step:06d}.json"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        with _classified("log rollouts"):
            run.client.log_text(run.mlflow_id, json.dumps(table, default=str), path)
            run.list_table(path)

    def set_tag(self, key: str, value: str) -> None:
        run = self._run()
        with _classified(f"set the tag {key}"):
            run.client.set_tag(run.mlflow_id, key, value)

    def finish(self, outcome: Outcome) -> None:
        """Close the run with MLflow's status for the outcome. The tag
        `orchestrator.state` holds the outcome itself.
        """
        run = self._run()
        with _classified("finish the run"):
            run.link_parent()
            run.client.set_tag(run.mlflow_id, "orchestrator.state", outcome)
            run.client.set_terminated(run.mlflow_id, STATUS[outcome])

    def _run(self) -> _OpenRun:
        if self._open is None:
            raise TrackerRefusedError("the run was not started")
        return self._open


class _OpenRun:
    """An open run in MLflow, with a cache of the data that it already has."""

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        mlflow_id: str,
        reopened: bool,
        parent_run_id: str | None,
    ) -> None:
        self.client, self.mlflow_id = client, mlflow_id
        self._experiment_id, self._reopened = experiment_id, reopened
        self._unlinked_parent = parent_run_id
        self._steps: dict[str, _StepSet] = {}
        """The steps that MLflow has, by metric."""
        self._tables: list[str] = []

    def link_parent(self) -> None:
        """Make the run a child of its pipeline. If the pipeline's own tracker has not opened it
        yet, the next call tries again.
        """
        if self._unlinked_parent is None:
            return
        parent = _find(self.client, self._experiment_id, self._unlinked_parent)
        if parent is not None:
            self.client.set_tag(self.mlflow_id, PARENT_TAG, parent)
            self._unlinked_parent = None

    def raise_if_deleted(self) -> None:
        """A deleted run rejects metrics until it is restored. They are kept, as
        if the server were unavailable.
        """
        if self.client.get_run(self.mlflow_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackerUnavailableError(f"The MLflow run {self.mlflow_id} is deleted: restore it.")

    def new_metrics(self, rows: Sequence[MetricRow]) -> list[Metric]:
        """Select the values that the run does not have yet. A batch whose response was lost is sent again in
        full; MLflow stores equal values once.
        """
        fresh: dict[tuple[str, int], Metric] = {}
        for row in rows:
            for name, value in row.metrics.items():
                key = tracking_key(name)
                if (key, row.step) not in fresh and row.step not in self._steps_of(key):
                    fresh[key, row.step] = Metric(key, value, row.time_ns // 1_000_000, row.step)
        return list(fresh.values())

    def logged(self, metrics: Sequence[Metric]) -> None:
        """Remember that these metrics arrived."""
        for metric in metrics:
            self._steps_of(metric.key).add(metric.step)

    def _steps_of(self, key: str) -> _StepSet:
        if key not in self._steps:
            history = self.client.get_metric_history(self.mlflow_id, key) if self._reopened else []
            self._steps[key] = _StepSet(metric.step for metric in history)
        return self._steps[key]

    def list_table(self, path: str) -> None:
        """Register the artifact as a table in the UI. The tag holds the first table
        and as many of the newest as fit.
        """
        if path not in self._tables:
            self._tables.append(path)
        if len(self._tables) > TABLES_LISTED:
            del self._tables[1]
        listed = [{"path": table, "type": "table"} for table in self._tables]
        self.client.set_tag(self.mlflow_id, TABLES_TAG, json.dumps(listed))


class _StepSet:
    """A set of steps as a bitmap: a hundred metrics of a million steps take 12 MB."""

    def __init__(self, steps: Iterable[int] = ()) -> None:
        self._bits = bytearray()
        for step in steps:
            self.add(step)

    def add(self, step: int) -> None:
        missing = step // 8 + 1 - len(self._bits)
        if missing > 0:
            self._bits.extend(bytes(missing))
        self._bits[step // 8] |= 1 << step % 8

    def __contains__(self, step: int) -> bool:
        return step // 8 < len(self._bits) and bool(self._bits[step // 8] >> step % 8 & 1)


def _experiment(client: MlflowClient, name: str, artifact_root: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = artifact_root.resolve().as_uri() if artifact_root else None
        with contextlib.suppress(MlflowException):  # another run has just created it
            return client.create_experiment(name, artifact_location=location)
        found = client.get_experiment_by_name(name)
    if found is None:
        raise TrackerUnavailableError(f"The MLflow experiment {name!r} can't be created or found.")
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackerUnavailableError(
            f"The MLflow experiment {name!r} is deleted. Restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or choose another one: tracking.experiment=NAME."
        )
    return found.experiment_id


def _find(client: MlflowClient, experiment_id: str, run_id: str) -> str | None:
    """Return MLflow's id of our run, the newest if there are several."""
    tagged = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
    runs = client.search_runs([experiment_id], filter_string=tagged, max_results=1)
    return runs[0].info.run_id if runs else None


def _tags(identity: RunIdentity) -> dict[str, str]:
    return {
        RUN_ID_TAG: identity.run_id,
        "orchestrator.job": identity.job,
        "orchestrator.purpose": identity.purpose,
        "orchestrator.team": identity.team,
        "orchestrator.project": identity.project,
        "orchestrator.state": "running",
        **identity.tags,
    }


@contextlib.contextmanager
def _classified(what: str) -> Generator[None]:
    """Map the errors of MLflow, its HTTP client, its database driver and its artifact stores to the two
    error classes of the Tracker port.
    """
    try:
        yield
    except (TrackerUnavailableError, TrackerRefusedError):
        raise
    except MlflowException as error:
        status = int(error.get_http_status_code())
        if 400 <= status < 500 and status not in RETRYABLE_4XX:
            raise TrackerRefusedError(f"MLflow rejected the request to {what}: {error.message}") from error
        raise TrackerUnavailableError(f"MLflow could not {what}: {error.message}") from error
    except Exception as error:
        raise TrackerUnavailableError(f"MLflow could not {what}: {type(error).__name__}: {error}") from error
