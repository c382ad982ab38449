import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import FakeClock
from orchestrator.training.telemetry.background import BackgroundTracker
from orchestrator.training.telemetry.config import DeliveryConfig
from orchestrator.training.telemetry.tracker import (
    MemoryTracker,
    MetricRow,
    RunIdentity,
    Tracker,
    TrackerUnavailableError,
)

IDENTITY = RunIdentity("grpo-17", "grpo", "final", "reasoning", "r1")
CLOCK = FakeClock(1_000)


class Server(MemoryTracker):
    """A tracker whose server is unavailable until `up` is set. Counts its requests."""

    def __init__(self) -> None:
        super().__init__(CLOCK)
        self.up = threading.Event()
        self.up.set()
        self.asked = threading.Semaphore(0)
        self.requests: list[tuple[int, ...]] = []
        self.refuse_artifacts = False
        self.refused_after_a_tag = threading.Event()

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        self.asked.release()
        if not self.up.is_set():
            raise TrackerUnavailableError("connection refused")
        self.requests.append(tuple(row.step for row in rows))
        super().log_rows(rows)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self.asked.release()
        if self.refuse_artifacts:
            if self.tags:
                self.refused_after_a_tag.set()
            raise TrackerUnavailableError("no such bucket")
        super().log_artifact(path, folder)

    def set_tag(self, key: str, value: str) -> None:
        if not self.up.is_set():
            raise TrackerUnavailableError("connection refused")
        super().set_tag(key, value)

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.up.is_set():
            raise TrackerUnavailableError("connection refused")
        super().log_rollouts(step, rows)


def delivery(**changes: float) -> DeliveryConfig:
    values: dict[str, Any] = {
        "interval_seconds": 0,
        "capacity": 100,
        "first_retry_seconds": 0.001,
        "max_retry_seconds": 0.01,
        "finish_seconds": 300,
    }
    return DeliveryConfig.model_validate(values | changes)


def started(make: Callable[[], Tracker], config: DeliveryConfig) -> BackgroundTracker:
    tracker = BackgroundTracker(make, config, CLOCK)
    tracker.start(IDENTITY)
    return tracker


def test_metrics_of_many_steps_are_sent_in_one_request() -> None:
    server = Server()
    tracker = started(lambda: server, delivery(interval_seconds=60))
    for step in range(1, 6):
        tracker.log_metrics(step, {"policy/loss": 1.0})
    tracker.finish("done")  # does not wait for the interval to pass
    assert server.requests == [(1, 2, 3, 4, 5)]
    assert tracker.lost == 0


def test_the_tracker_is_built_on_the_thread() -> None:
    built_on: list[str] = []

    def make() -> Tracker:
        built_on.append(threading.current_thread().name)
        return Server()

    started(make, delivery()).finish("done")
    assert built_on == ["tracker"]


def test_a_server_that_comes_back_gets_everything_in_order_and_once() -> None:
    server = Server()
    server.up.clear()
    tracker = started(lambda: server, delivery())
    for step in (1, 2, 3):
        tracker.log_metrics(step, {"policy/loss": float(step)})
    server.asked.acquire()
    server.asked.acquire()  # asked at least twice
    tracker.log_metrics(4, {"policy/loss": 4.0})
    server.up.set()
    tracker.finish("done")
    assert server.history["policy/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert (tracker.lost, server.outcome) == (0, "done")


def test_opening_the_run_is_retried() -> None:
    server, attempts = Server(), iter(range(3))

    def make() -> Tracker:
        if next(attempts, None) is not None:
            raise TrackerUnavailableError("connection refused")
        return server

    tracker = started(make, delivery())
    tracker.log_metrics(1, {"policy/loss": 1.0})
    tracker.finish("done")
    assert server.history["policy/loss"] == [(1, 1.0)]


def test_records_lost_to_a_dead_server_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.up.clear()
    tracker = started(lambda: server, delivery(finish_seconds=0.05, capacity=3))
    for step in range(1, 6):
        tracker.log_metrics(step, {"policy/loss": 1.0})
    tracker.set_tag("note", "kept")
    tracker.finish("failed")
    assert tracker.lost == 6
    assert "6 records did not reach the tracking server" in caplog.text
    tracker.log_metrics(6, {"policy/loss": 1.0})  # after the end: counted, not raised
    assert tracker.lost == 7


def test_a_full_queue_drops_the_oldest_records() -> None:
    server = Server()
    server.up.clear()
    tracker = started(lambda: server, delivery(capacity=2))
    for step in range(1, 6):
        tracker.log_metrics(step, {"policy/loss": 1.0})
        tracker.log_rollouts(step, [{"prompt": f"{step}"}])
    server.up.set()
    tracker.finish("done")
    assert server.history["policy/loss"][-2:] == [(4, 1.0), (5, 1.0)]
    assert {4, 5} <= server.rollouts.keys()
    assert len(server.history["policy/loss"]) + len(server.rollouts) + tracker.lost == 10


def written(last: int) -> list[MetricRow]:
    """The content of metrics.jsonl after `last` steps."""
    return [MetricRow(step, 1_000, {"policy/loss": float(step)}) for step in range(1, last + 1)]


def test_unsent_metrics_of_earlier_attempts_are_sent_when_the_run_is_opened() -> None:
    server = Server()
    tracker = BackgroundTracker(lambda: server, delivery(), CLOCK, history=lambda: written(3))
    tracker.start(IDENTITY)
    tracker.log_metrics(4, {"policy/loss": 4.0})
    tracker.finish("done")
    assert server.history["policy/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_metrics_dropped_during_an_outage_are_sent_before_the_run_is_closed() -> None:
    server, rows = Server(), list[MetricRow]()
    tracker = BackgroundTracker(lambda: server, delivery(capacity=2), CLOCK, history=lambda: rows)
    tracker.start(IDENTITY)
    server.asked.acquire()  # opened and caught up, with nothing yet
    server.up.clear()
    for step in range(1, 6):
        rows.append(MetricRow(step, 1_000, {"policy/loss": float(step)}))
        tracker.log_metrics(step, {"policy/loss": float(step)})
    server.up.set()
    tracker.finish("done")
    assert server.history["policy/loss"] == [(step, float(step)) for step in range(1, 6)]
    assert tracker.lost == 0


def test_an_unavailable_server_is_reported_once() -> None:
    server, problems = Server(), list[str]()
    server.up.clear()
    tracker = BackgroundTracker(
        lambda: server, delivery(finish_seconds=0.05), CLOCK, on_problem=problems.append
    )
    tracker.start(IDENTITY)
    tracker.log_metrics(1, {"policy/loss": 1.0})
    server.asked.acquire()
    server.asked.acquire()
    tracker.finish("done")
    assert problems == ["connection refused"]


def test_an_unreadable_history_only_loses_itself(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[MetricRow]:
        raise ValueError("line 3 is damaged")

    server = Server()
    tracker = BackgroundTracker(lambda: server, delivery(), CLOCK, history=broken)
    tracker.start(IDENTITY)
    tracker.log_metrics(1, {"policy/loss": 1.0})
    tracker.finish("done")
    assert server.history["policy/loss"] == [(1, 1.0)]
    assert "line 3 is damaged" in caplog.text


def test_parameters_and_artifacts_are_never_dropped_to_make_room(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"seed: 1")
    server = Server()
    server.up.clear()
    tracker = started(lambda: server, delivery(capacity=1))
    tracker.log_params({"seed": 1})
    tracker.log_artifact(file)
    for step in range(5):
        tracker.log_rollouts(step, [])
    server.up.set()
    tracker.finish("done")
    assert (server.params, server.artifacts) == ({"seed": "1"}, {"config.yaml": b"seed: 1"})


def test_an_unavailable_artifact_store_does_not_delay_other_records(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"seed: 1")
    server = Server()
    server.refuse_artifacts = True
    tracker = started(lambda: server, delivery(finish_seconds=0.2))
    tracker.log_artifact(file)
    server.asked.acquire()
    tracker.log_metrics(1, {"policy/loss": 1.0})
    tracker.set_tag("note", "arrived")
    assert server.refused_after_a_tag.wait(300)
    tracker.finish("done")
    assert server.history["policy/loss"] == [(1, 1.0)]
    assert server.tags["note"] == "arrived"
    assert tracker.lost == 1


def test_rejected_records_are_dropped_and_the_others_are_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    tracker = started(lambda: server, delivery())
    tracker.log_artifact(tmp_path / "missing.png")
    tracker.set_tag("note", "arrived")
    tracker.finish("done")
    assert (server.tags["note"], server.outcome, tracker.lost) == ("arrived", "done", 1)
    assert "missing.png dropped" in caplog.text


def test_a_bug_in_a_tracker_does_not_affect_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Tracker:
        raise ZeroDivisionError("a bug")

    tracker = started(make, delivery())
    tracker.log_metrics(1, {"policy/loss": 1.0})
    tracker.finish("done")
    assert tracker.lost == 1
    assert "tracking: stopped: a bug" in caplog.text


def test_metrics_keep_the_time_of_their_measurement() -> None:
    server, clock = Server(), FakeClock(1_000)
    times: list[int] = []
    server.log_rows = lambda rows: times.extend(row.time_ns for row in rows)  # type: ignore[method-assign]
    tracker = BackgroundTracker(lambda: server, delivery(interval_seconds=60), clock)
    tracker.start(IDENTITY)
    tracker.log_metrics(1, {"policy/loss": 1.0})
    clock.advance(500)
    tracker.log_metrics(2, {"policy/loss": 1.0})
    tracker.finish("done")
    assert times == [1_000, 1_500]


def test_finishing_without_starting_neither_loses_records_nor_waits() -> None:
    tracker = BackgroundTracker(Server, delivery(), CLOCK)
    tracker.finish("failed")
    assert tracker.lost == 0
