"""`orchestrator timeline`: for people, for scripts, and as a trace."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.cli.timeline import gantt_lines
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import WaitRecord
from orchestrator.runs.timeline.steps import StepWindow
from tests.fakes.timelines import SECOND, at, span, synchronous_step, timed_run, write_spool

LONGEST = "waited 60% of the time for the longest rollout (rollout-1), 6 s"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run_command_line(["timeline", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_newest_step_is_explained_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, timed_run(tmp_path / "run").path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "run  step 2, 10 s"
    assert f"In step 2 the learner {LONGEST}" in out
    assert f"Over steps 1 to 2 the learner {LONGEST} per step" in out
    assert "g generate, s score, u update, w sync; one column is 0.1 s" in out
    table = out.partition("critical path")[2]
    assert [line.split() for line in table.splitlines() if "rollout-1" in line] == [
        ["0.100", "6.000", "60%", "rollout-1", "generate"]
    ]


def test_a_step_of_choice_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(tmp_path / "run")
    code, out, _ = answer(capsys, "run", "--output-dir", tmp_path, "--step", 1, "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 0
    assert {"run_id", "step", "seconds", "critical_path", "sentence", "rows"} <= document.keys()
    assert (document["run_id"], document["step"]) == (run.run_id, 1)
    assert LONGEST in document["sentence"]


def test_a_step_that_has_not_finished_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(capsys, timed_run(tmp_path / "run").path, "--step", 3)
    assert code == 2
    assert "--step: got 3, allowed: 1-2" in err


def test_a_run_without_a_finished_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(tmp_path / "run", steps=0)
    code, out, _ = answer(capsys, run.path)
    assert (code, out) == (0, "run: No step has finished yet.\n")


def test_the_trace_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = timed_run(tmp_path / "run"), tmp_path / "trace.json"
    code, out, err = answer(capsys, run.path, "--trace", path, "--json")
    assert code == 0
    json.loads(out)
    assert str(path) in err
    assert len([event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]) > 14


def test_a_trace_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(tmp_path / "run")
    code, _, err = answer(capsys, run.path, "--trace", tmp_path / "none" / "trace.json")
    assert code == 2
    assert "cannot be written" in err


def test_a_pipeline_shows_its_newest_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = RunDirectory(tmp_path / "p")
    pipeline.create()
    pipeline.begin(job="r1_demo", purpose="debug", steps=0, at_ns=at(-9), stages=("sft", "grpo"))
    timed_run(tmp_path / "p-grpo")
    pipeline.add_stage("grpo", "p-grpo")
    _, out, _ = answer(capsys, pipeline.path)
    assert out.startswith("p-grpo  step 2")


def test_damaged_lines_and_corrected_clocks_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = timed_run(tmp_path / "run", steps=0)
    nodes = {"run/1-a/0.0": "node-a", "run/1-a/1.0": "node-b"}
    slow = span("rollout-1", "generate", -1.9, 4.1, 0, 60)
    rest = [each for each in synchronous_step() if each.actor != "rollout-1"]
    write_spool(run, [span("learner-0", "sync", -0.2, 0.0, 0), slow, *rest], nodes)
    with (run.ledger / "1-reward-0-0.jsonl").open("a") as file:
        file.write("half a li\n")
    run.append_metrics(1, {"time/step": 10.0, "time/wait_batch": 7.1}, at(10))
    _, out, _ = answer(capsys, run.path)
    assert "The clock of host node-b was corrected by +1.900 s." in out
    assert "1 lines of the usage spool are damaged and were left out." in out


def test_an_actor_has_the_letter_of_what_it_did_most_in_a_column() -> None:
    window = StepWindow(1, at(0), at(10))
    spans = [*synchronous_step(), span("judge-0", "serve", 5.2, 5.9, 0)]
    assert gantt_lines(window, spans, width=31) == [
        "judge-0    ··········xx········",
        "learner-0  ··············uuuuuw",
        "reward-0   ······s·····ss······",
        "rollout-0  gggggg··············",
        "rollout-1  ggggggggggggg·······",
        "           g generate, s score, u update, w sync, x other; one column is 0.5 s",
    ]
    assert len(gantt_lines(window, spans, width=5)[0]) == len("judge-0    ") + 20


def test_status_says_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(tmp_path / "run")
    assert run_command_line(["status", str(run.path), "--json"]) == 0
    assert LONGEST in json.loads(capsys.readouterr().out)["bottleneck"]
    run_command_line(["status", str(run.path)])
    assert LONGEST in capsys.readouterr().out.replace("\n", "")


def test_status_says_what_the_run_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run(tmp_path / "run")
    text = "waiting for rollout-1 to sample rollouts since 12:00:00 UTC (usually 6 s)"
    since_ns = time.time_ns() - 95 * SECOND
    run.write_waiting((WaitRecord("generate", "rollout-1", since_ns, 6.0, text),))
    run_command_line(["status", str(run.path)])
    assert re.search(r"waiting for rollout-1 .* \(usually 6 s\) \(1:3\d so far\)", capsys.readouterr().out)
