"""A rollout that cannot be scored is recorded with the scorer's traceback and the response."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.rewards.grader import InlineGrader
from orchestrator.training.stages import Scored
from orchestrator.training.tally import MOST_REASONS_SHOWN, StepBudgets, StepTally
from orchestrator.training.telemetry.failures import FailureLog, describe_failure, read_failures
from orchestrator.training.telemetry.summary import BlockSummary
from tests.fakes.graded import reward_config, rollout_block


def failing_block() -> tuple[RolloutBlock, ScoreBlock]:
    block = rollout_block(["good", "bad \ud800"], group_size=2)
    grader = InlineGrader(reward_config({"tests.fakes.scorers:raises": 1.0}), 100)
    return block, grader.grade(block)


def test_failures_are_written_with_traceback_and_response(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "rollouts" / "failed-reward-0.jsonl")
    block, scores = failing_block()
    described = log.write(3, block, scores)
    (row,) = read_failures(tmp_path / "rollouts")
    assert row["step"] == 3
    assert row["response"] == "bad \ud800"
    assert row["grade"] == "crashed"
    assert row["reason"] == "raises: RuntimeError: no such proof"
    assert "in raises" in row["traceback"]
    first, *_, last = described.splitlines()
    assert first == "p0 (crashed): raises: RuntimeError: no such proof"
    assert last.startswith("response: bad")
    assert describe_failure(row) == described


def test_the_record_is_bounded_and_skips_a_half_written_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.training.telemetry.failures.MOST_WRITTEN", 2)
    log = FailureLog(tmp_path / "failed-reward-0.jsonl")
    block, scores = failing_block()
    for step in range(4):
        assert log.write(step, block, scores) != ""
    with (tmp_path / "failed-reward-0.jsonl").open("a") as file:
        file.write('{"step": 9')
    assert [row["step"] for row in read_failures(tmp_path)] == [0, 1]


def test_a_block_without_failures_writes_nothing(tmp_path: Path) -> None:
    block = rollout_block(["good"])
    scores = InlineGrader(reward_config({"tests.fakes.scorers:raises": 1.0}), 100).grade(block)
    assert scores.grades.tolist() == [ScoreStatus.OK]
    assert FailureLog(tmp_path / "failed-reward-0.jsonl").write(1, block, scores) == ""
    assert list(tmp_path.iterdir()) == []
    assert read_failures(tmp_path / "missing") == []


def test_a_full_disk_loses_the_record_but_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    block, scores = failing_block()
    log = FailureLog(tmp_path / "file" / "failed-reward-0.jsonl")
    assert log.write(1, block, scores) != ""


def test_each_reason_is_reported_once_up_to_a_limit() -> None:
    tally = StepTally(StepBudgets(0, 0.0), SystemClock())

    def arrived(failure: str) -> str:
        return tally.arrived(Scored((), BlockSummary(rollouts=1, failure=failure), ()))

    assert arrived("") == ""
    first = "p/1 (crashed): it: KeyError: 'a'\nTraceback\nresponse: x"
    assert arrived(first) == first
    assert arrived("p/2 (crashed): it: KeyError: 'a'\nTraceback\nresponse: y") == ""
    reported = [arrived(f"p/1 (crashed): it: KeyError: {index}") for index in range(10)]
    assert sum(bool(each) for each in reported) == MOST_REASONS_SHOWN - 1
