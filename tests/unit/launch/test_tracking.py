"""The inputs of a run's tracker: the rows of metrics.jsonl, and a callback that reports problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import FakeClock
from orchestrator.config import compose as configs
from orchestrator.launch import tracking
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.telemetry.background import History
from orchestrator.training.telemetry.tracker import MemoryTracker, MetricRow, Tracker


def test_the_tracker_gets_earlier_metrics_and_reports_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.begin(job="grpo", purpose="debug", steps=2, at_ns=0)
    run.append_metrics(1, {"reward/mean": 0.5, "policy/kl": float("nan")}, 7)
    for path in (run.config, run.manifest):
        path.write_text("{}")
    clock, shown, seen = FakeClock(9), list[str](), list[list[MetricRow]]()

    def build(_: Any, __: Path, ___: Any, history: History, on_problem: Callable[[str], None]) -> Tracker:
        seen.append(list(history()))
        on_problem("the server is away")
        return MemoryTracker(clock)

    monkeypatch.setattr(tracking, "build_tracker", build)
    with tracking.tracked(configs.compose("grpo", []), run, "", clock, shown.append) as tracker:
        assert isinstance(tracker, MemoryTracker)
    assert seen == [[MetricRow(1, 7, {"reward/mean": 0.5})]]
    assert shown == ["tracking is unavailable, metrics are kept in metrics.jsonl: the server is away"]
    assert list(run.read_events("tracking_unavailable")) == [{"reason": "the server is away"}]
