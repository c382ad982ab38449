"""Real processes killed in the middle of a real run."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LONGEST_COMMAND, NIXL, Program

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STEPS = 14


@pytest.mark.parametrize("channel", ["auto", "collective", NIXL])
def test_a_run_survives_a_killed_rollout_worker_and_a_killed_learner_rank(
    program: Program, small_run: Callable[..., tuple[str, ...]], channel: str
) -> None:
    run = f"killed-{channel}"
    words = small_run(
        run,
        f"steps={STEPS}",
        "checkpoint.every=2",
        "evaluation.every=0",
        "learner.world_size=2",
        "learner.expert_parallel_size=2",
        "max_staleness=1",
        "algorithm=grpo_tis",
        f"weights.channel={channel}",
    )
    directory = program.output_dir / run
    with program.start(*words) as process:
        wait_for_step(directory, 2)
        os.kill(pid_of(directory, "rollout-0"), signal.SIGKILL)
        wait_for_step(directory, 5)
        os.kill(pid_of(directory, "learner-1"), signal.SIGKILL)
        out, err = process.communicate(timeout=LONGEST_COMMAND)
    assert process.returncode == 0, f"{out}\n{err}"

    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert "rollout-0" in [event["worker"] for event in events if event["event"] == "worker_lost"]
    assert kinds.count("learner_lost") == kinds.count("restored") == 1
    losses = program.losses(run)
    assert sorted(losses) == list(range(1, STEPS + 1)), "every step once, those after the restore again"
    report = program.json("cost", "report", run)
    assert report["difference_ns"] == 0


def wait_for_step(directory: Path, step: int) -> None:
    """Wait until the run has reported `step`."""
    deadline = time.monotonic() + LONGEST_COMMAND
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and f'"step":{step},' in metrics.read_text()):
        assert time.monotonic() < deadline, f"step {step} did not come in {LONGEST_COMMAND:g} s"
        time.sleep(0.05)


def pid_of(directory: Path, actor: str) -> int:
    """The process of an actor's newest life."""
    found = re.findall(r"is process (\d+)", (directory / "logs" / f"{actor}.log").read_text())
    return int(found[-1])
