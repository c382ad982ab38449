"""The status of runs, read from their directories alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import RunNotFoundError
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.process import ProcessIdentity
from orchestrator.runs.record import RunState, WaitRecord

AT_NS = 1_795_503_428_000_000_000  # 2026-11-24 06:57:08 UTC
SECOND = 1_000_000_000


def make_run(
    output_dir: Path, run_id: str, *, at_ns: int = AT_NS, steps: int = 10, pipeline: str = "", stage: str = ""
) -> RunDirectory:
    run = RunDirectory(output_dir / run_id)
    run.create()
    job = run_id.split("-")[2]
    run.begin(job=job, purpose="debug", steps=steps, at_ns=at_ns, pipeline=pipeline, stage=stage)
    return run


def kill(run: RunDirectory) -> None:
    gone = replace(ProcessIdentity.current(), start_ticks=1)
    write_atomically(run.state, replace(run.record(), process=gone).to_json())


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    make_run(tmp_path, "20261124-065708-sft-0001")
    newer = make_run(tmp_path, "20261124-065710-grpo-0002", at_ns=AT_NS + 2 * SECOND)
    newer.write_state(RunState.DONE, "", AT_NS + 60 * SECOND)
    (tmp_path / "20261124-070000-grpo-dddd").mkdir()
    (tmp_path / "20261124-070000-grpo-dddd" / "state.json").write_text("{")
    listed = [runs.summary(record) for record in runs.records(tmp_path)]
    assert [run["run_id"][-4:] for run in listed] == ["0002", "0001"]
    assert listed[0] == {
        "run_id": "20261124-065710-grpo-0002",
        "job": "grpo",
        "state": "done",
        "purpose": "debug",
        "started": "2026-11-24T06:57:10Z",
        "ended": "2026-11-24T06:58:08Z",
        "why": "",
        "attempt": 1,
        "pipeline": None,
        "stage": None,
    }
    assert (listed[1]["state"], listed[1]["ended"]) == ("running", None)


def test_no_directory_means_no_runs(tmp_path: Path) -> None:
    assert runs.records(tmp_path / "nowhere") == []


def test_a_run_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    kill(run)
    record = runs.observe(run)
    assert record.state is RunState.FAILED
    assert "is gone" in record.why
    assert f"orchestrator resume {run.run_id}" in record.why
    assert record.ended_ns is not None
    assert run.record().state is RunState.RUNNING  # reading changes nothing


def test_the_state_of_a_run_on_another_host_is_trusted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    elsewhere = replace(ProcessIdentity.current(), host="another host", boot_id="x", start_ticks=1)
    write_atomically(run.state, replace(run.record(), process=elsewhere).to_json())
    assert runs.observe(run).state is RunState.RUNNING
    (lease,) = run.lease.iterdir()
    long_ago = lease.stat().st_mtime - 3600
    os.utime(lease, (long_ago, long_ago))
    record = runs.observe(run)
    assert record.state is RunState.FAILED
    assert "No heartbeat from process" in record.why and "another host" in record.why


def test_a_run_is_referenced_by_id_prefix_latest_or_path(tmp_path: Path) -> None:
    first = make_run(tmp_path, "20261124-065708-sft-0001")
    second = make_run(tmp_path, "20261125-065708-grpo-0002", at_ns=AT_NS + 86_400 * SECOND)
    assert runs.find_run(tmp_path, first.run_id).path == first.path
    assert runs.find_run(tmp_path, "20261124").path == first.path
    assert runs.find_run(tmp_path, "latest").path == second.path
    assert runs.find_run(Path("/nowhere"), str(first.path)).path == first.path


def test_latest_is_never_a_stage_of_a_pipeline(tmp_path: Path) -> None:
    pipeline = make_run(tmp_path, "20261124-065708-r1_demo-0001")
    make_run(
        tmp_path, "20261124-065709-sft-0002", at_ns=AT_NS + 1, pipeline=pipeline.run_id, stage="cold_start"
    )
    assert runs.find_run(tmp_path, "latest").path == pipeline.path


def test_a_prefix_shared_with_its_stages_means_the_pipeline(tmp_path: Path) -> None:
    pipeline = make_run(tmp_path, "20261124-065708-r1_demo-0001")
    stage = make_run(tmp_path, f"{pipeline.run_id}-grpo", pipeline=pipeline.run_id, stage="grpo")
    assert runs.find_run(tmp_path, "20261124").path == pipeline.path
    assert runs.find_run(tmp_path, stage.run_id).path == stage.path
    assert runs.find_run(tmp_path, f"{pipeline.run_id}-g").path == stage.path


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("20261124", "2 runs begin like this"),
        ("x", "runs are looked for in"),
        ("", "2 runs"),
        ("./x", "state.json"),
    ],
)
def test_an_ambiguous_reference_lists_the_runs(tmp_path: Path, reference: str, told: str) -> None:
    make_run(tmp_path, "20261124-065708-sft-0001")
    make_run(tmp_path, "20261124-065709-sft-0002")
    with pytest.raises(RunNotFoundError) as caught:
        runs.find_run(tmp_path, reference)
    assert told in caught.value.hint
    assert caught.value.exit_code == 2


def test_status_has_the_last_value_and_the_history_of_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    run.append_metrics(0, {"accuracy/heldout": 0.25}, AT_NS)
    run.append_metrics(1, {"reward/mean": 0.1, "time/step": 2.0}, AT_NS)
    run.append_metrics(2, {"reward/mean": 0.2, "accuracy/heldout": 0.5}, AT_NS)
    run.append_metrics(2, {"reward/mean": 0.3}, AT_NS)  # done again after a resume
    status = runs.status_document(run)
    assert (status["step"], status["steps"], status["state"], status["why"]) == (2, 10, "running", "")
    assert status["metrics"] == {"reward/mean": 0.3, "time/step": 2.0, "accuracy/heldout": 0.5}
    assert status["history"]["reward/mean"] == [[1, 0.1], [2, 0.3]]
    assert status["history"]["accuracy/heldout"] == [[0, 0.25], [2, 0.5]]
    assert status["history"]["policy/loss"] == []
    assert "stages" not in status


def test_status_has_the_history_of_sampled_held_out_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    run.append_metrics(0, {"eval/pass_at_8": 0.5}, AT_NS)
    run.append_metrics(2, {"eval/pass_at_8": 0.75}, AT_NS)
    assert runs.status_document(run)["history"]["eval/pass_at_8"] == [[0, 0.5], [2, 0.75]]


def test_status_of_a_pipeline_shows_its_stages_and_the_newest_ones_metrics(tmp_path: Path) -> None:
    pipeline = RunDirectory(tmp_path / "20261124-065708-r1_demo-0001")
    pipeline.create()
    pipeline.begin(
        job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["cold_start", "grpo", "judge"]
    )
    before = runs.status_document(pipeline)
    assert [(stage["state"], stage["run_id"]) for stage in before["stages"]] == [("queued", None)] * 3
    for name, run_id, steps in (("cold_start", "c-c-sft-1", 400), ("grpo", "c-c-grpo-2", 100)):
        stage = make_run(tmp_path, run_id, steps=steps, pipeline=pipeline.run_id, stage=name)
        pipeline.add_stage(name, run_id)
        stage.append_metrics(7, {"reward/mean": float(steps)}, AT_NS)
    RunDirectory(tmp_path / "c-c-sft-1").write_state(RunState.DONE, "", AT_NS)
    status = runs.status_document(pipeline)
    assert status["stages"] == [
        {"name": "cold_start", "run_id": "c-c-sft-1", "state": "done"},
        {"name": "grpo", "run_id": "c-c-grpo-2", "state": "running"},
        {"name": "judge", "run_id": None, "state": "queued"},
    ]
    assert (status["step"], status["steps"]) == (7, 100)
    assert status["history"]["reward/mean"] == [[7, 100.0]]


def test_a_stage_announced_before_its_directory_exists_is_queued(tmp_path: Path) -> None:
    pipeline = RunDirectory(tmp_path / "20261124-065708-r1_demo-0001")
    pipeline.create()
    pipeline.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["grpo"])
    pipeline.add_stage("grpo", "not-made-yet")
    status = runs.status_document(pipeline)
    assert status["stages"] == [{"name": "grpo", "run_id": "not-made-yet", "state": "queued"}]
    assert status["step"] == 0


WAIT = WaitRecord(
    "score", "reward-0", AT_NS, 2.0, "waiting for reward-0 to compute rewards since 06:57:08 UTC"
)


def test_status_says_what_a_running_run_waits_for(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    assert runs.status_document(run)["waiting"] == []
    run.write_waiting((WAIT,))
    (wait,) = runs.status_document(run)["waiting"]
    seconds = wait.pop("seconds")
    assert seconds > 0
    assert wait == {
        "what": "score",
        "where": "reward-0",
        "since": "2026-11-24T06:57:08Z",
        "usual_seconds": 2.0,
        "text": WAIT.text,
    }


def test_a_run_that_has_ended_or_died_waits_for_nothing(tmp_path: Path) -> None:
    ended, died = (
        make_run(tmp_path, "20261124-065708-grpo-0001"),
        make_run(tmp_path, "20261124-065708-grpo-0002"),
    )
    for run in (ended, died):
        run.write_waiting((WAIT,))
    ended.write_state(RunState.FAILED, "no answer", AT_NS + SECOND)
    kill(died)
    assert runs.status_document(ended)["waiting"] == []
    assert runs.status_document(died)["waiting"] == []


def test_the_next_attempt_does_not_inherit_a_wait(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    run.write_waiting((WAIT,))
    run.begin(job="grpo", purpose="debug", steps=10, at_ns=AT_NS)
    assert run.record().waiting == ()


def test_a_state_of_a_version_without_waits_can_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20261124-065708-grpo-0001")
    fields = json.loads(run.state.read_text())
    del fields["waiting"]
    run.state.write_text(json.dumps(fields))
    assert run.record().waiting == ()


def test_a_pipeline_waits_for_what_its_stage_waits_for(tmp_path: Path) -> None:
    pipeline = make_run(tmp_path, "20261124-065708-r1-0001")
    stage = make_run(tmp_path, "20261124-065708-grpo-0002", pipeline=pipeline.run_id, stage="grpo")
    pipeline.add_stage("grpo", stage.run_id)
    stage.write_waiting((WAIT,))
    assert [wait["where"] for wait in runs.status_document(pipeline)["waiting"]] == ["reward-0"]
