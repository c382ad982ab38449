"""Real processes are killed in the middle of a real run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Program
from tests.running import events_of, going_on, interrupt, last_step, pid_of, wait_for_step, wait_until
from tests.support.lanes import also_long

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.mark.parametrize("channel", also_long(["auto"], ["object_store"]))
def test_a_run_survives_a_killed_rollout_worker_and_a_killed_learner_rank(
    program: Program, small_run: Callable[..., tuple[str, ...]], channel: str
) -> None:
    run = f"killed-{channel}"
    words = small_run(
        run,
        "rollout.workers=2",
        "checkpoint.every=2",
        "evaluation.every=0",
        "learner.world_size=2",
        "learner.expert_parallel_size=2",
        "max_staleness=1",
        "algorithm=grpo_tis",
        f"weights.channel={channel}",
    )
    directory = program.output_dir / run

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in events_of(directory) if event["event"] == kind]

    with going_on(program, *words) as process:
        wait_for_step(directory, 2, process)
        os.kill(pid_of(directory, "rollout-0"), signal.SIGKILL)
        wait_until(lambda: bool(told("worker_lost")), "the loss of the worker", process)
        wait_for_step(directory, last_step(directory) + 3, process)
        os.kill(pid_of(directory, "learner-1"), signal.SIGKILL)
        wait_until(lambda: bool(told("restored")), "the restored learner", process)
        wait_for_step(directory, told("learner_lost")[0]["step"] + 6, process)
        interrupt(process)

    assert "rollout-0" in [event["worker"] for event in told("worker_lost")]
    assert len(told("learner_lost")) == len(told("restored")) == 1
    last = program.json("status", run)["step"]
    assert sorted(program.losses(run)) == list(range(1, last + 1)), "every step once, after the restore too"
    report = program.json("cost", "report", run)
    assert report["difference_ns"] == 0
