"""The timeline of a run directory: whole, in progress, resumed, damaged."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.timeline.trace import trace_document
from orchestrator.runs.timeline.view import NO_SPANS, NO_STEP, bottleneck, read_timeline, timeline_document
from tests.fakes.timelines import SECOND, at, span, synchronous_step, timed_run, write_spool

SENTENCE = (
    "In step 2 the learner waited 60% of the time for the longest rollout (rollout-1), 6 s; one more rollout"
    " worker would save at most 2 s per step and add 0.0040 USD to its cost."
)


def test_the_document_of_a_step_has_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    timeline = read_timeline(timed_run(tmp_path / "run"))
    document = timeline_document(timeline, timeline.window(2))
    assert (document["run_id"], document["step"], document["seconds"]) == ("run", 2, 10.0)
    assert document["sentence"] == SENTENCE
    assert document["critical_path"][1] == {
        "role": "rollout",
        "activity": "generate",
        "actor": "rollout-1",
        "start_ns": at(10.1),
        "end_ns": at(16.1),
    }
    assert sum(part["end_ns"] - part["start_ns"] for part in document["critical_path"]) == 10 * SECOND
    assert len(document["rows"]) == 7
    assert document["rows"][0] == {
        "actor": "rollout-0",
        "role": "rollout",
        "activity": "generate",
        "start_ns": at(10.1),
        "end_ns": at(13.0),
        "step": 1,
        "tokens": 30,
        "attempt": 1,
    }
    assert document["recent"] == {"steps": [1, 2], "sentence": bottleneck(RunDirectory(tmp_path / "run"))}
    assert (document["clock_shifts_ns"], document["damaged_lines"]) == ({}, 0)


def test_the_sentence_about_a_run_covers_its_newest_twenty_steps(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=23)
    assert bottleneck(run) == (
        "Over steps 4 to 23 the learner waited 60% of the time for the longest rollout (rollout-1), 6 s per"
        " step; one more rollout worker would save at most 2 s per step and add 0.0040 USD to its cost."
    )


def test_a_run_in_progress_has_its_open_step_among_the_rows(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=1)
    write_spool(run, [span("rollout-0", "generate", 10.1, 12.0, 1, 30)])
    timeline = read_timeline(run)
    assert [window.step for window in timeline.windows] == [1]
    assert timeline.spans[-1].end_ns == at(12.0)


def test_before_the_first_step_there_is_only_what_was_done(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    write_spool(run, [span("learner-0", "load", 0, 5, 0)])
    document = timeline_document(read_timeline(run), None)
    assert (document["step"], document["seconds"], document["critical_path"]) == (None, None, [])
    assert document["sentence"] == NO_STEP
    assert [row["activity"] for row in document["rows"]] == ["load"]
    assert bottleneck(run) == ""


def test_a_resumed_run_explains_the_repetition_of_a_step(tmp_path: Path) -> None:
    """Step 2 was done by attempt 1, whose checkpoint was that of step 1, and again by attempt 2."""
    run = timed_run(tmp_path / "run", steps=2)
    run.drop_metrics_after(1)
    again = [
        span("rollout-0", "generate", 100, 101, 1, 5, attempt=2),
        span("reward-0", "score", 101, 105, 1, 5, attempt=2),
        span("learner-0", "update", 105, 108, 1, attempt=2),
    ]
    write_spool(run, again)
    run.append_metrics(2, {"time/step": 8.0, "time/wait_batch": 5.0}, at(108))
    timeline = read_timeline(run)
    document = timeline_document(timeline, timeline.window(2))
    assert [row["attempt"] for row in document["rows"]] == [2, 2, 2]
    assert "waited 50% of the time for the scoring of rollouts (reward-0), 4 s" in document["sentence"]
    assert {each.attempt for each in timeline.spans} == {1, 2}


def test_metrics_without_spans_and_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run")
    for path in run.ledger.iterdir():
        path.unlink()
    assert bottleneck(run) == NO_SPANS
    write_spool(run, synchronous_step())
    run.config.write_text(": {not yaml")
    timeline = read_timeline(run)
    # Neither the number of prompts nor the currency is known: a third, and no money.
    assert timeline.explain(timeline.windows[:1]).endswith(
        "would save at most 2 s per step; its cost is unknown, because the run has no prices."
    )


def test_damaged_lines_are_said(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run")
    with (run.ledger / "1-reward-0-0.jsonl").open("a") as file:
        file.write("half a li\n")
    assert timeline_document(read_timeline(run), None)["damaged_lines"] == 1


def test_a_host_with_a_slow_clock_is_said(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=0)
    nodes = {"run/1-a/0.0": "node-a", "run/1-a/1.0": "node-b"}
    first = span("learner-0", "sync", -0.2, 0.0, 0)
    slow = span("rollout-1", "generate", -1.9, 4.1, 0, 60)
    rest = [each for each in synchronous_step() if each.actor != "rollout-1"]
    write_spool(run, [first, slow, *rest], nodes)
    run.append_metrics(1, {"time/step": 10.0, "time/wait_batch": 7.1}, at(10))
    document = timeline_document(timeline := read_timeline(run), timeline.window(1))
    assert document["clock_shifts_ns"] == {"node-b": round(1.9 * SECOND)}
    assert "rollout-1" in {part["actor"] for part in document["critical_path"]}


def test_the_trace_is_what_perfetto_reads(tmp_path: Path) -> None:
    timeline = read_timeline(timed_run(tmp_path / "run"))
    paths = {window.step: timeline.path(window) for window in timeline.windows}
    document = json.loads(json.dumps(trace_document("run", timeline.spans, timeline.windows, paths)))
    events = document["traceEvents"]
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    assert set(names.values()) == {
        "steps",
        "critical path",
        "rollout-0",
        "rollout-1",
        "reward-0",
        "learner-0",
    }
    complete = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in complete)
    (longest,) = [
        event
        for event in complete
        if names[event["pid"], event["tid"]] == "rollout-1" and event["args"]["step"] == 0
    ]
    assert (longest["name"], longest["cat"], longest["ts"], longest["dur"]) == (
        "generate",
        "rollout",
        100_000.0,
        6_000_000.0,
    )
    assert longest["args"]["tokens"] == 60
    steps = [event for event in complete if names[event["pid"], event["tid"]] == "steps"]
    assert [(event["name"], event["ts"], event["dur"]) for event in steps] == [
        ("step 1", 0.0, 10_000_000.0),
        ("step 2", 10_000_000.0, 10_000_000.0),
    ]
    assert document["otherData"]["start_ns"] == at(0)


def test_a_long_span_belongs_to_every_step_that_it_overlaps(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=5)
    write_spool(run, [span("rollout-2", "generate", 3, 44, 0)])
    timeline = read_timeline(run)
    for window in timeline.windows:
        found = timeline.within(window.start_ns, window.end_ns)
        assert found == [
            each for each in timeline.spans if each.start_ns < window.end_ns and each.end_ns > window.start_ns
        ]
        assert len(found) == 8
