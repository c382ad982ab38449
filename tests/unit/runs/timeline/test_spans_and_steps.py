"""Reading spool files and metrics: damaged, missing, growing, and of several attempts."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.timeline import spans as spooled
from orchestrator.runs.timeline.spans import read_spool
from orchestrator.runs.timeline.steps import StepWindow, read_steps
from tests.fakes.timelines import SECOND, at, span, synchronous_step, timed_run, write_spool


def new_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    return run


def test_spans_come_in_order_with_their_host_and_attempt(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    later = span("rollout-0", "generate", 50, 60, 3, 7, attempt=2)
    write_spool(run, [*synchronous_step(), later], {"run/1-a/1.0": "node-b"})
    read = read_spool(run.ledger)
    assert read.damaged == 0
    assert [each.actor for each in read.spans[:2]] == ["rollout-0", "rollout-1"]
    assert [each.node for each in read.spans[:2]] == ["node-a", "node-b"]
    assert read.spans[-1] == replace(later, node="node-a")


def test_a_slot_of_several_accelerators_is_one_span(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    both = span("rollout-0", "generate", 0, 1, 0, 7, leases=("run/1-a/0.0", "run/1-a/0.1"))
    write_spool(run, [both])
    (read,) = read_spool(run.ledger).spans
    assert read.leases == ("run/1-a/0.0", "run/1-a/0.1")


def test_damaged_lines_are_counted_and_a_line_in_the_making_is_not(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_spool(run, [span("rollout-0", "generate", 0, 1, 0)])
    path = run.ledger / "1-rollout-0-0.jsonl"
    good = path.read_bytes()
    reversed_times = good.replace(b'"end_ns": 17', b'"end_ns": 16')
    no_actor = good.replace(b'"actor"', b'"who"')
    text_step = good.replace(b'"step": 0', b'"step": "0"')
    damaged = [b"\x00\xff garbage\n", good[:40] + b"\n", reversed_times, no_actor, text_step, b"[1]\n"]
    path.write_bytes(good + b"".join(damaged) + good[:-1])
    read = read_spool(run.ledger)
    assert (len(read.spans), read.damaged) == (1, len(damaged))


def test_other_events_and_other_files_are_not_spans(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_spool(run, [span("rollout-0", "generate", 0, 1, 0)])
    (run.ledger / "1-reward-0-0.jsonl").write_text('{"schema":1,"type":"heartbeat","at_ns":1}\n')
    (run.ledger / "wrap.jsonl").write_text("not a file of this run\n")
    read = read_spool(run.ledger)
    assert (len(read.spans), read.damaged) == (1, 0)


def test_no_folder_and_no_controller(tmp_path: Path) -> None:
    assert read_spool(tmp_path / "none").spans == ()
    run = new_run(tmp_path / "run")
    write_spool(run, [span("rollout-0", "generate", 0, 1, 0)])
    (run.ledger / "1-controller.jsonl").unlink()
    assert [each.node for each in read_spool(run.ledger).spans] == [""]


def test_only_what_ended_after_a_moment(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_spool(run, synchronous_step())
    assert [each.activity for each in read_spool(run.ledger, since_ns=at(9.3)).spans] == ["sync"]


def test_a_quick_look_reads_the_ends_of_long_files(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    many = [span("rollout-0", "generate", step, step + 0.5, step) for step in range(2000)]
    write_spool(run, many)
    recent = read_spool(run.ledger, recent_only=True)
    assert recent.damaged == 0
    assert 500 < len(recent.spans) < 2000
    assert list(recent.spans) == [replace(each, node="node-a") for each in many[-len(recent.spans) :]]
    assert (run.ledger / "1-rollout-0-0.jsonl").stat().st_size > spooled.RECENT_BYTES


def test_windows_end_when_the_metrics_were_written(tmp_path: Path) -> None:
    times = read_steps(timed_run(tmp_path / "run").metrics)
    assert times.windows == (
        StepWindow(1, at(0), at(10), round(7.2 * SECOND)),
        StepWindow(2, at(10), at(20), round(7.2 * SECOND)),
    )
    assert times.price_per_hour is not None
    assert round(times.price_per_hour, 9) == Decimal("3.6")


def test_metrics_that_are_missing_damaged_or_without_times(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=1, priced=False)
    run.append_metrics(2, {"reward/mean": 0.5}, at(20))
    with run.metrics.open("ab") as file:
        file.write(b'{"step":3}\nnot json\n{"step":"x","time_ns":1,"metrics":{}}\n[]\n')
        file.write(b'{"step":4,"time_ns":5,"metrics":{"time/step":"long","cost/usd":true}}\n{"step":5,')
    times = read_steps(run.metrics)
    assert [window.step for window in times.windows] == [1]
    assert times.price_per_hour is None
    assert read_steps(tmp_path / "none.jsonl").windows == ()


def test_a_run_that_went_back_to_a_checkpoint_has_its_last_repetition(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=3)
    run.append_metrics(2, {"time/step": 4.0}, at(100))
    assert [(window.step, window.ns) for window in read_steps(run.metrics).windows] == [
        (1, 10 * SECOND),
        (2, 4 * SECOND),
    ]
