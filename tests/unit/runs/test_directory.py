"""The files that a run writes about itself, and that they are never read incompletely."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import InputError, RunNotFoundError, StateError
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.lease import FencedError
from orchestrator.runs.process import ProcessIdentity
from orchestrator.runs.record import RunRecord, RunState, StageRecord, new_run_id

AT_NS = 1_795_503_428_000_000_000  # 2026-11-24 06:57:08 UTC


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "20261124-065708-grpo-0a1b")
    run.create()
    return run


def begin(run: RunDirectory, at_ns: int = AT_NS) -> RunRecord:
    return run.begin(job="grpo", purpose="debug", steps=10, at_ns=at_ns)


def dead_process() -> ProcessIdentity:
    """A process that has ended. Its pid may be free or reused."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(ProcessIdentity.current(), pid=process.pid, start_ticks=1)


def test_run_ids_sort_by_time_and_name_the_job() -> None:
    run_id = new_run_id("my/odd job", AT_NS)
    assert re.fullmatch(r"20261124-065708-my_odd_job-[0-9a-f]{4}", run_id)
    assert run_id < new_run_id("a", AT_NS + 1_000_000_000)


def test_a_run_id_is_unique(run: RunDirectory) -> None:
    with pytest.raises(StateError, match=f"orchestrator resume {run.run_id}"):
        run.create()


def test_a_run_directory_that_cannot_be_created_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be created: Not a directory") as caught:
        RunDirectory(tmp_path / "file" / "run").create()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("run_id", ["../../etc", "/etc", "..", "a/b", "", "x" * 300, ".hidden", "a\nb"])
def test_run_ids_in_a_state_file_cannot_escape_the_output_folder(run: RunDirectory, run_id: str) -> None:
    record = begin(run)
    for damaged in (
        replace(record, run_id=run_id),
        replace(record, stages=(StageRecord("grpo", run_id),)),
        replace(record, pipeline=run_id or "../x"),
    ):
        write_atomically(run.state, damaged.to_json())
        with pytest.raises(RunNotFoundError, match="is not a run id"):
            run.record()


def test_a_writer_that_was_replaced_writes_nothing_more(run: RunDirectory) -> None:
    begin(run)
    RunDirectory(run.path).begin(job="grpo", purpose="debug", steps=10, at_ns=AT_NS)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    writes: list[Callable[[], object]] = [
        lambda: run.append_metrics(1, {}, AT_NS),
        lambda: run.append_event("checkpoint", {}, AT_NS),
        lambda: run.append_routing(1, []),
        lambda: run.write_state(RunState.DONE, "", AT_NS),
        lambda: run.add_stage("grpo", "other"),
        lambda: run.write_config(""),
        lambda: run.write_manifest(""),
    ]
    for write in writes:
        with pytest.raises(FencedError, match="taken over"):
            write()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_state_is_read_back_as_written(run: RunDirectory) -> None:
    record = begin(run)
    assert run.record() == record
    assert (record.state, record.attempt, record.process) == (RunState.RUNNING, 1, ProcessIdentity.current())
    run.write_state(RunState.DRAINED, "Ctrl-C", AT_NS + 5)
    ended = run.record()
    assert (ended.state, ended.why, ended.ended_ns) == (RunState.DRAINED, "Ctrl-C", AT_NS + 5)
    assert RunRecord.from_json(ended.to_json()) == ended


def test_a_second_attempt_keeps_the_start_and_clears_the_end(run: RunDirectory) -> None:
    begin(run)
    run.write_state(RunState.FAILED, "a rank was lost", AT_NS + 5)
    again = begin(run, AT_NS + 9)
    assert (again.attempt, again.started_ns, again.ended_ns, again.why) == (2, AT_NS, None, "")


def test_two_processes_cannot_execute_the_same_run(run: RunDirectory) -> None:
    begin(run)
    parent = ProcessIdentity.current()
    child = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.runs.directory import RunDirectory\n"
        "RunDirectory(Path(sys.argv[1])).begin(job='grpo', purpose='debug', steps=1, at_ns=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(run.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"is still running (process {parent.pid} on " in done.stderr
    assert run.record().attempt == 1


def test_a_run_whose_process_died_can_be_taken_over(run: RunDirectory) -> None:
    write_atomically(run.state, replace(begin(run), process=dead_process()).to_json())
    assert begin(run).attempt == 2


def test_a_reused_pid_is_a_different_process() -> None:
    mine = ProcessIdentity.current()
    assert mine.is_alive() is True
    assert replace(mine, start_ticks=mine.start_ticks + 1).is_alive() is False
    assert replace(mine, boot_id="another machine").is_alive() is None
    assert replace(mine, host="renamed").is_alive() is True
    assert replace(mine, host="renamed", pid_namespace="").is_alive() is None
    assert replace(mine, pid_namespace="another container").is_alive() is None
    assert dead_process().is_alive() is False


def test_a_pipeline_knows_its_stages_before_they_start(run: RunDirectory) -> None:
    run.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["cold_start", "grpo"])
    run.add_stage("cold_start", "20261124-065709-sft-ffff")
    expected = (StageRecord("cold_start", "20261124-065709-sft-ffff"), StageRecord("grpo", None))
    assert run.record().stages == expected
    again = run.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["cold_start", "grpo"])
    assert again.stages == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "x"}', '{"state": "asleep", "stages": []}'])
def test_a_directory_with_a_damaged_state_is_not_a_run(run: RunDirectory, text: str) -> None:
    run.state.write_text(text)
    with pytest.raises(RunNotFoundError, match="damaged"):
        run.record()


def test_unknown_keys_of_a_state_are_ignored(run: RunDirectory) -> None:
    record = run.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["grpo"])
    fields = json.loads(run.state.read_text())
    for part in (fields, fields["stages"][0], fields["process"]):
        part["of_another_version"] = 1
    run.state.write_text(json.dumps(fields))
    assert run.record() == record


def test_metrics_lines_are_whole_and_finite(run: RunDirectory) -> None:
    run.append_metrics(1, {"reward/mean": 0.5, "policy/loss": float("nan")}, AT_NS)
    run.append_metrics(2, {"reward/mean": 0.75}, AT_NS + 1)
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "metr')
    lines = list(run.read_metrics())
    assert [(line.step, dict(line.metrics)) for line in lines] == [
        (1, {"reward/mean": 0.5}),
        (2, {"reward/mean": 0.75}),
    ]
    first = json.loads(run.metrics.read_text().splitlines()[0])
    assert first == {"step": 1, "time_ns": AT_NS, "metrics": {"reward/mean": 0.5, "policy/loss": None}}


def test_a_resumed_run_drops_the_steps_after_its_checkpoint(run: RunDirectory) -> None:
    run.drop_metrics_after(3)
    for step in range(1, 6):
        run.append_metrics(step, {"reward/mean": float(step)}, AT_NS)
    with run.metrics.open("a") as file:
        file.write('{"step": 6')
    run.drop_metrics_after(3)
    run.append_metrics(4, {"reward/mean": 40.0}, AT_NS)
    assert [(line.step, line.metrics["reward/mean"]) for line in run.read_metrics()] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_events_are_lines_with_their_fields(run: RunDirectory) -> None:
    run.append_event("worker_lost", {"worker": "rollout-0", "reason": "killed"}, AT_NS)
    assert json.loads(run.events.read_text()) == {
        "event": "worker_lost",
        "time_ns": AT_NS,
        "worker": "rollout-0",
        "reason": "killed",
    }


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_cut_short_by_a_full_disk_is_an_error(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 3)
    with pytest.raises(OSError, match="cut short"):
        run.append_metrics(1, {}, AT_NS)
