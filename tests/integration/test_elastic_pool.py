"""Rollout workers leave and join a real run on Ray, which is audited afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Program
from tests.running import events_of, going_on, interrupt, last_step, wait_for_step, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_workers_leave_and_join_while_a_run_trains(
    program: Program, small_run: Callable[..., tuple[str, ...]]
) -> None:
    run = "elastic"
    directory = program.output_dir / run
    words = small_run(
        run,
        "rollout.workers=2",
        "rollout.min_workers=1",
        "checkpoint.every=50",
        "evaluation.every=0",
        "max_staleness=2",
        "algorithm=grpo_tis",
        "rollout.on_new_weights=continue",
        "rollout.stream_seconds=0.02",
        "cluster.heartbeat_seconds=1.0",
    )

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in events_of(directory) if event["event"] == kind]

    with going_on(program, *words) as process:
        wait_until(lambda: len(told("worker_joined")) == 1, "the elastic worker", process)
        wait_for_step(directory, last_step(directory) + 3, process)
        shown = program.json("workers", run)
        assert [(each["name"], each["state"], each["permanent"]) for each in shown["workers"]] == [
            ("rollout-0", "running", True),
            ("rollout-1", "running", False),
        ]
        refused = program.json("workers", run, "--remove", "2", code=2)
        assert "at least 1 must stay" in refused["error"]

        assert program.json("workers", run, "--remove", "1")["wanted"] == 1
        wait_until(lambda: len(told("worker_left")) == 1, "the worker to leave", process)
        wait_for_step(directory, last_step(directory) + 3, process)
        assert program.json("status", run)["workers"] == {"wanted": 1, "running": 1, "min_workers": 1}

        assert program.json("workers", run, "--add", "1")["wanted"] == 2
        wait_until(lambda: len(told("worker_joined")) == 2, "a new worker", process)
        wait_for_step(directory, last_step(directory) + 3, process)
        assert program.json("workers", run, "--remove", "1", "--now")["wanted"] == 1
        wait_until(lambda: len(told("worker_left")) == 2, "the worker to leave at once", process)
        wait_for_step(directory, last_step(directory) + 3, process)
        interrupt(process)

    assert [event["worker"] for event in told("worker_joined")] == ["rollout-1", "rollout-2"]
    assert [event["abandoned"] for event in told("worker_left")] == [False, True]
    assert told("worker_lost") == []
    audit = program.json("audit", run)
    assert audit["violations"] == []
    last = program.json("status", run)["step"]
    assert sorted(program.losses(run)) == list(range(1, last + 1)), "no step was lost or repeated"
    assert program.json("cost", "report", run)["difference_ns"] == 0
    _assert_slots_were_paid_for_from_joining_to_leaving(directory, told("worker_left"))


def _assert_slots_were_paid_for_from_joining_to_leaving(directory: Path, left: list[dict[str, Any]]) -> None:
    """Each elastic worker has a lease, which ends when it leaves and contains all that it did."""
    lines = (directory / "ledger" / "1-controller.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    closed = {each["lease_id"]: each["at_ns"] for each in events if each["type"] == "lease_closed"}
    opened = {each["lease_id"]: each["at_ns"] for each in events if each["type"] == "lease_opened"}
    assert closed.keys() == opened.keys()
    assert len(opened) == 3, "the slot of the learner, and one for each elastic worker"
    for event in left:
        (spool,) = (directory / "ledger").glob(f"1-{event['worker']}-*.jsonl")
        spans = [json.loads(line) for line in spool.read_text().splitlines()]
        assert {"load", "sync", "generate"} <= {span["activity"] for span in spans}
        (lease,) = {span["lease_id"] for span in spans}
        assert opened[lease] <= min(span["start_ns"] for span in spans)
        assert max(span["end_ns"] for span in spans) <= closed[lease] <= event["time_ns"]
