from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from orchestrator.training.records import BatchPart, RolloutBlock, ScoreBlock
from orchestrator.training.telemetry.recorder import (
    RolloutRecorder,
    read_recorded,
    recorded_path,
    recorded_steps,
)


def test_there_is_one_row_per_rollout(part: BatchPart, tmp_path: Path) -> None:
    path = RolloutRecorder().record(12, [part], tmp_path / "rollouts")
    assert path == tmp_path / "rollouts" / "step-000012.parquet"
    rows = read_recorded(tmp_path / "rollouts", 12)
    assert [row["response"] for row in rows] == ["3.", "4.", "0.", "10."]
    assert rows[3] == {
        "step": 12,
        "group_id": 11,
        "prompt_id": "sums/train/1",
        "prompt": "5-5=",
        "response": "10.",
        "reward": 0.0,
        "accuracy": 0.0,
        "reflected": False,
        "length": 3,
        "finish": "length",
        "grade": "ok",
        "reason": "",
        "traceback": "",
        "version": 8,
        "component/accuracy": 0.0,
        "component/format": 0.5,
    }


def test_only_the_groups_of_the_part(part: BatchPart, tmp_path: Path) -> None:
    RolloutRecorder().record(1, [replace(part, groups=(1,)), replace(part, groups=(0,))], tmp_path)
    assert [row["group_id"] for row in read_recorded(tmp_path, 1)] == [11, 11, 10, 10]


def test_a_rollout_without_a_score_has_no_accuracy(
    rollouts: RolloutBlock, failed_scores: ScoreBlock, tmp_path: Path
) -> None:
    RolloutRecorder().record(1, [BatchPart(rollouts, failed_scores, (1,))], tmp_path)
    row = read_recorded(tmp_path, 1)[1]
    assert (row["grade"], row["reason"], row["reward"]) == ("timeout", "no verdict after 2 s", -1.0)
    assert row["accuracy"] is None
    assert row["component/format"] is None


def test_a_rubric_without_accuracy_has_the_same_columns(part: BatchPart, tmp_path: Path) -> None:
    scores = replace(part.scores, components={"format": part.scores.components["format"]})
    RolloutRecorder().record(1, [replace(part, scores=scores), part], tmp_path)
    rows = read_recorded(tmp_path, 1)
    assert [row["accuracy"] for row in rows] == [None] * 4 + [1.0, 0.0, 1.0, 0.0]
    assert [row["component/accuracy"] for row in rows[:4]] == [None] * 4


def test_an_empty_response_has_no_version(rollouts: RolloutBlock, scores: ScoreBlock, tmp_path: Path) -> None:
    offsets = np.array([0, 0, 4, 4, 9], dtype=np.int64)
    RolloutRecorder().record(1, [BatchPart(replace(rollouts, offsets=offsets), scores, (0, 1))], tmp_path)
    assert [row["version"] for row in read_recorded(tmp_path, 1)] == [-1, 7, -1, 8]


def test_a_step_without_groups_still_has_the_columns(part: BatchPart, tmp_path: Path) -> None:
    path = RolloutRecorder().record(1, [], tmp_path)
    assert read_recorded(tmp_path, 1) == []
    assert "response" in pq.read_schema(path).names


def test_an_interrupted_write_leaves_the_older_file(
    part: BatchPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RolloutRecorder()
    recorder.record(1, [part], tmp_path)
    before = recorded_path(tmp_path, 1).read_bytes()

    def full_disk(table: Any, where: Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        recorder.record(1, [replace(part, groups=(0,))], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001.parquet"]
    assert recorded_path(tmp_path, 1).read_bytes() == before


def test_recorded_steps_are_listed_by_kind(part: BatchPart, tmp_path: Path) -> None:
    recorder = RolloutRecorder()
    for step in (20, 3):
        recorder.record(step, [part], tmp_path)
    recorder.record(4, [part], tmp_path, kind="heldout")
    assert recorded_steps(tmp_path) == [3, 20]
    assert recorded_steps(tmp_path, "heldout") == [4]
    assert recorded_steps(tmp_path / "missing") == []


def test_a_sample_is_drawn_without_replacement_and_repeatable(part: BatchPart) -> None:
    recorder = RolloutRecorder()
    rows = recorder.sample([part, part], k=5, seed=3)
    assert len(rows) == 5
    assert rows == recorder.sample([part, part], k=5, seed=3)
    assert [row["response"] for row in recorder.sample([part], k=99, seed=0)] == ["3.", "4.", "0.", "10."]
    assert rows[0].keys() >= {"prompt", "response", "reward", "accuracy", "reflected", "finish"}
