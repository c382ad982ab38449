"""Real processes are killed in the middle of a real run."""

from __future__ import annotations

import os
import signal
import time
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


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def hang(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def slow_down(pid: int) -> None:
    """Let the process run for a tenth of two seconds."""
    for _ in range(20):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.09)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


@pytest.mark.parametrize("on_new_weights", also_long(["continue"], ["recompute"]))
@pytest.mark.parametrize("fault", also_long([kill], [hang, slow_down]))
def test_no_group_is_lost_while_weights_change_during_rollouts(
    program: Program,
    small_run: Callable[..., tuple[str, ...]],
    fault: Callable[[int], None],
    on_new_weights: str,
) -> None:
    """The workers stream their groups and take every version at once, so the faults hit generation, handing
    over and updates alike.
    """
    run = f"async-{fault.__name__}-{on_new_weights}"
    words = small_run(
        run,
        "checkpoint.every=50",
        "evaluation.every=0",
        "max_staleness=4",
        "algorithm=grpo_tis",
        f"rollout.on_new_weights={on_new_weights}",
        "rollout.workers=2",
        "rollout.stream_seconds=0.02",
        *(["cluster.call_timeout_seconds=30"] if fault is hang else []),
    )
    directory = program.output_dir / run

    def losses() -> list[dict[str, Any]]:
        return [event for event in events_of(directory) if event["event"] == "worker_lost"]

    with going_on(program, *words) as process:
        wait_for_step(directory, 4, process)
        fault(pid_of(directory, "rollout-0"))
        if fault is not slow_down:
            wait_until(lambda: bool(losses()), "the loss of the worker", process)
        wait_for_step(directory, last_step(directory) + 12, process)
        interrupt(process)

    assert [event["worker"] for event in losses()] == ([] if fault is slow_down else ["rollout-0"])
    audit = program.json("audit", run)
    assert audit["violations"] == []
    assert audit["tokens"]["trained"] > 0
    last = program.json("status", run)["step"]
    assert sorted(program.losses(run)) == list(range(1, last + 1))
    assert program.json("cost", "report", run)["difference_ns"] == 0
