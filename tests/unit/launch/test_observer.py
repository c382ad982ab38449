"""What a run's observer writes about cost and warnings at each step."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from orchestrator.clock import FakeClock
from orchestrator.launch.observer import RunObserver
from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.meter import Spent
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import WaitRecord
from orchestrator.training.events import Restored, WaitEnded, Waiting, WaitKind
from orchestrator.training.records import StepReport
from orchestrator.training.telemetry.tracker import MemoryTracker
from orchestrator.training.telemetry.training_health import LearningSignal, TrainingHealth


def health() -> TrainingHealth:
    return TrainingHealth(LearningSignal(imitates=False, group_relative=True), 100)


class View:
    def __init__(self) -> None:
        self.costs: list[Decimal | None] = []
        self.messages: list[str] = []

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        self.costs.append(cost)

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_each_step_reports_the_cost_of_the_run_so_far(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    clock, view = FakeClock(), View()
    tracker = MemoryTracker(clock)
    spent: list[Spent | None] = [None, Spent(Fraction(1, 3), HOUR_NS), Spent(Fraction(4), 3 * HOUR_NS)]
    steps: list[int] = []
    observer = RunObserver(
        directory,
        tracker,
        view,
        lambda: spent[len(steps) - 1],
        None,
        health(),
        lambda: steps.append(1),
        clock,
    )
    observer.on_step(StepReport(0, {"accuracy/heldout": 0.25}))
    observer.on_step(StepReport(1, {"rollout/tokens": 1_000_000.0}))
    observer.on_step(StepReport(2, {"rollout/tokens": 1_000_000.0, "accuracy/heldout": 0.75}))
    lines = [json.loads(line)["metrics"] for line in directory.metrics.read_text().splitlines()]
    costs = [{name: value for name, value in line.items() if name.startswith("cost/")} for line in lines]
    assert costs == [
        {},
        {"cost/usd": 1 / 3, "cost/accelerator_hours": 1.0, "cost/usd_per_million_tokens": 1 / 3},
        {
            "cost/usd": 4.0,
            "cost/accelerator_hours": 3.0,
            "cost/usd_per_million_tokens": 2.0,
            "cost/usd_per_heldout_point": 0.08,
        },
    ]
    assert view.costs == [None, Decimal("0.333333"), Decimal("4.000000")]
    assert tracker.history["cost/accelerator_hours"] == [(1, 1.0), (2, 3.0)]


def test_a_budget_warning_is_shown_tagged_and_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    clock, view = FakeClock(), View()
    tracker = MemoryTracker(clock)
    observer = RunObserver(directory, tracker, view, lambda: None, None, health(), lambda: None, clock)
    observer.on_budget_warning("budget blue: 50% of 10 USD is used or reserved (threshold 50%)")
    assert view.messages == [tracker.tags["budget"]]
    assert tracker.tags["budget"] in directory.events.read_text()


def test_a_training_warning_is_shown_tagged_and_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    clock, view = FakeClock(), View()
    tracker = MemoryTracker(clock)
    observer = RunObserver(directory, tracker, view, lambda: None, None, health(), lambda: None, clock)
    for step in range(1, 20):
        observer.on_step(StepReport(step, {"reward/mean": 0.0, "reward/std": 0.0}))
    (warning,) = directory.read_events("training_warning")
    assert (warning["problem"], warning["step"]) == ("equal_rewards", 3)
    assert tracker.tags["training_warning"] == "equal_rewards"
    assert view.messages == [f"{warning['what']} {warning['check']}"]


def test_a_resumed_run_counts_earlier_steps_towards_a_training_warning(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    clock, view = FakeClock(), View()
    nothing = {"reward/mean": 0.0, "reward/std": 0.0}
    for step in (1, 2, 3):
        directory.append_metrics(step, nothing, 0)
    tracker = MemoryTracker(clock)
    observer = RunObserver(directory, tracker, view, lambda: None, None, health(), lambda: None, clock)
    observer.on_event(Restored(2))
    observer.on_step(StepReport(3, nothing))
    (warning,) = directory.read_events("training_warning")
    assert (warning["problem"], warning["step"]) == ("equal_rewards", 3)


def waiting(where: str = "rollout-1") -> Waiting:
    return Waiting(WaitKind.GENERATE, where, 5_000_000_000, 3.0, "")


def test_what_the_run_waits_for_is_in_its_state_until_it_is_over(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.begin(job="grpo", purpose="debug", steps=3, at_ns=0)
    clock, view = FakeClock(), View()
    tracker = MemoryTracker(clock)
    observer = RunObserver(directory, tracker, view, lambda: None, None, health(), lambda: None, clock)
    observer.on_event(waiting())
    observer.on_event(waiting("rollout-2"))
    text = "waiting for rollout-1 to sample rollouts since 00:00:05 UTC (usually 3 s)"
    assert directory.record().waiting[0] == WaitRecord("generate", "rollout-1", 5_000_000_000, 3.0, text)
    observer.on_event(WaitEnded(WaitKind.GENERATE, "rollout-1", 40.0))
    assert [wait.where for wait in directory.record().waiting] == ["rollout-2"]
    assert view.messages[0] == text
    assert view.messages[2] == "no longer waiting for rollout-1 to sample rollouts, after 40 s"
    assert [event["where"] for event in directory.read_events("waiting")] == ["rollout-1", "rollout-2"]
    assert [event["seconds"] for event in directory.read_events("wait_ended")] == [40.0]


def test_a_full_disk_does_not_end_a_run_because_it_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.begin(job="grpo", purpose="debug", steps=3, at_ns=0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.runs.directory.append_line", full)
    clock, view = FakeClock(), View()
    tracker = MemoryTracker(clock)
    observer = RunObserver(directory, tracker, view, lambda: None, None, health(), lambda: None, clock)
    observer.on_event(waiting())
    observer.on_event(WaitEnded(WaitKind.GENERATE, "rollout-1", 40.0))
    assert len(view.messages) == 2
    assert "No space left on device" in caplog.text
