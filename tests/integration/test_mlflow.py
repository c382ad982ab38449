"""The tracker contract on a real MLflow with SQLite, and properties that only MLflow has: parents,
tables, an unavailable server.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import SystemClock
from orchestrator.training.telemetry.config import DeliveryConfig, TrackingConfig
from orchestrator.training.telemetry.tracker import (
    MetricRow,
    RunIdentity,
    Tracker,
    TrackerRefusedError,
    TrackerUnavailableError,
)
from orchestrator.training.telemetry.tracking import build_tracker, connect_mlflow
from tests.contracts.tracker_contract import IDENTITY, TrackerContract, TrackerUnderTest

pytestmark = pytest.mark.slow


def tracking_config(uri: str | None = None, finish_seconds: float = 600.0) -> TrackingConfig:
    return TrackingConfig(
        backend="mlflow",
        uri=uri,
        experiment="tests",
        sampled_rollouts=16,
        record_every=1,
        max_lost_records=0,
        delivery=DeliveryConfig(
            interval_seconds=0.05,
            capacity=1000,
            first_retry_seconds=0.05,
            max_retry_seconds=1,
            finish_seconds=finish_seconds,
        ),
    )


class MLflowUnderTest(TrackerUnderTest):
    """MLflow, read through its own client."""

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir

    def new(self) -> Tracker:
        return connect_mlflow(tracking_config(), self._output_dir, SystemClock())

    def history(self, name: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.run().info.run_id, name)
        return sorted((point.step, point.value) for point in points)

    def params(self) -> dict[str, str]:
        return self.run().data.params

    def tags(self) -> dict[str, str]:
        return self.run().data.tags

    def artifacts(self) -> dict[str, bytes]:
        root = self._output_dir / "mlartifacts" / self.run().info.run_id / "artifacts"
        files = [path for path in root.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(root)): path.read_bytes() for path in files if path.parent.name != "rollouts"
        }

    def rollouts(self, step: int) -> list[dict[str, object]]:
        root = self._output_dir / "mlartifacts" / self.run().info.run_id / "artifacts"
        table = json.loads((root / "rollouts" / f"step-{step:06d}.json").read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def outcome(self) -> str | None:
        return self.run().data.tags["orchestrator.state"]

    def run(self, run_id: str = IDENTITY.run_id) -> Any:
        """MLflow's run for our run; there is exactly one."""
        experiment = self.client.get_experiment_by_name("tests")
        assert experiment is not None
        tagged = f"tags.`orchestrator.run_id` = '{run_id}'"
        (run,) = self.client.search_runs([experiment.experiment_id], filter_string=tagged)
        return run

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self._output_dir / 'mlflow.db'}")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A migrated database. Creating one takes seconds, copying it does not."""
    output_dir = tmp_path_factory.mktemp("mlflow")
    connect_mlflow(tracking_config(), output_dir, SystemClock())
    assert [path.name for path in output_dir.iterdir()] == ["mlflow.db"]
    return (output_dir / "mlflow.db").read_bytes()


@pytest.fixture
def output_dir(empty_database: bytes, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "runs"
    directory.mkdir()
    (directory / "mlflow.db").write_bytes(empty_database)
    yield directory


class TestMLflow(TrackerContract):
    @pytest.fixture
    def under_test(self, output_dir: Path) -> TrackerUnderTest:
        return MLflowUnderTest(output_dir)


def test_stages_are_children_of_their_pipeline(output_dir: Path) -> None:
    mlflow = MLflowUnderTest(output_dir)
    pipeline, stage = mlflow.new(), mlflow.new()
    # The stage is opened first: the pipeline's own tracker works on another thread and may be late.
    stage.start(RunIdentity("r1-1-sft", "sft", "final", "reasoning", "r1", parent_run_id="r1-1"))
    pipeline.start(RunIdentity("r1-1", "r1", "final", "reasoning", "r1"))
    stage.log_metrics(1, {"policy/loss": 2.0})
    assert mlflow.run("r1-1-sft").data.tags["mlflow.parentRunId"] == mlflow.run("r1-1").info.run_id


def test_the_run_has_tags_for_its_identity_and_outcome(output_dir: Path) -> None:
    mlflow = MLflowUnderTest(output_dir)
    tracker = mlflow.new()
    tracker.start(IDENTITY)
    assert mlflow.run().info.status == "RUNNING"
    tracker.finish("drained")
    run = mlflow.run()
    assert (run.info.run_name, run.info.status, run.data.tags["orchestrator.state"]) == (
        "grpo-17",
        "KILLED",
        "drained",
    )
    assert run.data.tags["orchestrator.purpose"] == "final"
    tracker.start(IDENTITY)
    assert mlflow.run().info.status == "RUNNING"


def test_rollouts_are_logged_as_an_mlflow_table(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = MLflowUnderTest(output_dir)
    tracker = mlflow.new()
    tracker.start(IDENTITY)
    for step in range(1, 67):
        tracker.log_rollouts(step, [{"prompt": f"{step}+0=", "reward": 1.0}])
    listed = json.loads(mlflow.tags()["mlflow.loggedArtifacts"])
    assert listed[0] == {"path": "rollouts/step-000001.json", "type": "table"}
    assert listed[-1]["path"] == "rollouts/step-000066.json"
    # load_table searches the tracking server of the environment, whatever server its client uses.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output_dir / 'mlflow.db'}")
    frame = mlflow.client.load_table(
        mlflow.run().info.experiment_id, listed[-1]["path"], run_ids=[mlflow.run().info.run_id]
    )
    assert frame.to_dict("records") == [{"prompt": "66+0=", "reward": 1.0}]


def test_errors_are_mapped_to_two_classes(output_dir: Path, tmp_path: Path) -> None:
    tracker = MLflowUnderTest(output_dir).new()
    with pytest.raises(TrackerRefusedError, match="not started"):
        tracker.log_metrics(1, {"policy/loss": 1.0})
    tracker.start(IDENTITY)
    with pytest.raises(TrackerRefusedError, match=r"missing\.png is not a file"):
        tracker.log_artifact(tmp_path / "missing.png")
    with pytest.raises(TrackerRefusedError, match="rejected the request to set the tag"):
        tracker.set_tag("a" * 300, "too long a key")
    away = connect_mlflow(tracking_config("http://127.0.0.1:9"), tmp_path, SystemClock())
    with pytest.raises(TrackerUnavailableError, match="could not start the run"):
        away.start(IDENTITY)


def test_a_run_is_tracked_from_the_background(output_dir: Path) -> None:
    tracker = build_tracker(tracking_config(), output_dir, SystemClock())
    tracker.start(IDENTITY)
    for step in range(1, 201):
        tracker.log_metrics(step, {f"time/{name}": float(step) for name in ("generate", "score", "learn")})
    tracker.finish("done")
    mlflow = MLflowUnderTest(output_dir)
    assert mlflow.history("time/learn") == [(step, float(step)) for step in range(1, 201)]
    assert mlflow.outcome() == "done"


ROWS = [MetricRow(step, step * 1_000_000, {"reward/mean": step / 10}) for step in range(1, 9)]


def test_unsent_steps_of_a_killed_attempt_arrive_with_the_next_one(output_dir: Path) -> None:
    """Killed in step 5, when step 4 was in metrics.jsonl but not yet sent."""
    mlflow = MLflowUnderTest(output_dir)
    killed = mlflow.new()
    killed.start(IDENTITY)
    killed.log_rows(ROWS[:3])

    resumed = build_tracker(tracking_config(), output_dir, SystemClock(), history=lambda: ROWS[:7])
    resumed.start(IDENTITY)
    resumed.log_metrics(8, {"reward/mean": 0.8})
    resumed.finish("done")
    assert mlflow.history("reward/mean") == [(row.step, row.metrics["reward/mean"]) for row in ROWS]


def test_a_deleted_experiment_has_all_steps_when_it_is_restored(
    output_dir: Path,
) -> None:
    mlflow, problems, reported = MLflowUnderTest(output_dir), list[str](), threading.Event()
    experiment = mlflow.client.create_experiment("tests")
    mlflow.client.delete_experiment(experiment)

    def on_problem(reason: str) -> None:
        problems.append(reason)
        reported.set()

    config = tracking_config()
    tracker = build_tracker(config, output_dir, SystemClock(), history=lambda: ROWS, on_problem=on_problem)
    tracker.start(IDENTITY)
    tracker.log_rows(ROWS[:2])
    assert reported.wait(60)
    mlflow.client.restore_experiment(experiment)
    tracker.finish("done")
    assert len(problems) == 1
    assert "'tests' is deleted" in problems[0]
    assert f"--experiment-id {experiment}" in problems[0]
    assert [step for step, _ in mlflow.history("reward/mean")] == [row.step for row in ROWS]


def test_a_run_that_is_deleted_while_it_is_tracked(output_dir: Path) -> None:
    mlflow = MLflowUnderTest(output_dir)
    tracker = mlflow.new()
    tracker.start(IDENTITY)
    tracker.log_rows(ROWS[:2])
    mlflow.client.delete_run(run_id := mlflow.run().info.run_id)
    with pytest.raises(TrackerUnavailableError, match="is deleted: restore it"):
        tracker.log_rows(ROWS[2:])
    mlflow.client.restore_run(run_id)
    tracker.log_rows(ROWS)
    assert [step for step, _ in mlflow.history("reward/mean")] == [row.step for row in ROWS]
