"""The scorers' process against scorers that hang, die, and take what they can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import WorkerLostError
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards import process as process_module
from orchestrator.training.rewards.grader import FEWEST_LOST_CHILDREN, Grader
from tests.fakes.graded import reward_config, rollout_block
from tests.processes import alive

pytestmark = pytest.mark.slow

FAKES = "tests.fakes.scorers"
ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 10.0
"""Seconds in which a rollout that does not hang is scored, on a machine that is busy."""
Make = Callable[..., Grader]


@pytest.fixture
def make() -> Iterator[Make]:
    """A grader with one scorer of the fakes."""
    made: list[Grader] = []

    def make(scorer: str, **changes: object) -> Grader:
        made.append(Grader(reward_config({f"{FAKES}:{scorer}": 1.0}, **changes), max_new_tokens=100))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 300
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_rollout_that_hangs_is_killed_and_costs_no_other(make: Make) -> None:
    grader = make("hangs", timeout_seconds=ENOUGH)
    pid = grader.pid
    scores = grader.grade(rollout_block(["a", "bad", "c", "d"]))
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.TIMEOUT, ScoreStatus.OK, ScoreStatus.OK]
    assert scores.rewards.tolist() == [1.0, -0.5, 1.0, 1.0]
    assert scores.reasons[1] == f"no score within {ENOUGH:g} s"
    assert grader.pid != pid and pid is not None and not alive(pid)


@pytest.mark.parametrize(("scorer", "how"), [("dies", "died of SIGSEGV"), ("leaves", "exited with code 7")])
def test_a_process_that_dies_is_replaced(make: Make, scorer: str, how: str) -> None:
    scores = make(scorer).grade(rollout_block(["bad", "b", "bad2", "d"]))
    assert scores.grades.tolist() == [
        ScoreStatus.CRASHED,
        ScoreStatus.OK,
        ScoreStatus.CRASHED,
        ScoreStatus.OK,
    ]
    assert scores.reasons[0] == f"the scorers' process {how}"


def test_memory_is_limited(make: Make) -> None:
    scores = make("eats_memory", memory_bytes=2**32).grade(rollout_block(["bad", "b"]))
    assert scores.grades.tolist() == [ScoreStatus.CRASHED, ScoreStatus.OK]
    assert "MemoryError" in scores.reasons[0]


def test_a_block_that_only_hangs_ends_soon(make: Make) -> None:
    """40 rollouts that hang cost five children, not forty; the loop then sees that all failed."""
    grader = make("hangs", timeout_seconds=0.3, failure_budget=0.1)
    scores = grader.grade(rollout_block([f"bad {index}" for index in range(40)]))
    tried = [reason for reason in scores.reasons if reason.startswith("no score")]
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT] * 40
    assert len(tried) == FEWEST_LOST_CHILDREN + 1


def test_retries_after_a_hang(make: Make) -> None:
    grader = make("hangs", timeout_seconds=ENOUGH, retries=1)
    scores = grader.grade(rollout_block(["bad", "b"]))
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT, ScoreStatus.OK]


def test_loading_does_not_count_against_the_timeout(make: Make) -> None:
    scores = make("slow_to_load", timeout_seconds=ENOUGH).grade(rollout_block(["a"]))
    assert scores.grades.tolist() == [ScoreStatus.OK]


def test_a_process_that_dies_between_blocks_is_no_rollouts_fault(make: Make) -> None:
    grader = make("process_id")
    first = grader.grade(rollout_block(["a"])).rewards[0]
    os.kill(int(first), 9)
    scores = grader.grade(rollout_block(["a"]))
    assert scores.grades.tolist() == [ScoreStatus.OK]
    assert scores.rewards[0] != first


def test_a_process_that_cannot_start_is_a_lost_worker(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module.sys, "executable", "/bin/false")
    with pytest.raises(WorkerLostError, match="exited with code 1 while it started"):
        make("length").grade(rollout_block(["a"]))


def test_one_process_serves_many_blocks_without_torch(make: Make) -> None:
    grader = make("torch_is_loaded")
    pid = grader.pid
    for _ in range(3):
        assert grader.grade(rollout_block(["a", "b"])).rewards.tolist() == [0.0, 0.0]
    assert grader.pid == pid


def test_what_scorers_print_is_not_output(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    make("prints").grade(rollout_block(["a"]))
    out, err = capfd.readouterr()
    assert "a scorer printed this" not in out
    assert "a scorer printed this" in err


def test_closing_ends_the_process() -> None:
    with Grader(reward_config({"format": 1.0}), max_new_tokens=10) as grader:
        pid = grader.pid
        assert pid is not None and alive(pid)
    assert not alive(pid)


@pytest.mark.parametrize("text", ["a", "bad"], ids=["idle", "in a scorer that hangs"])
def test_the_process_ends_with_its_parent(text: str) -> None:
    program = f"""
import sys, threading, time
from orchestrator.training.rewards.grader import Grader
from tests.fakes.graded import reward_config, rollout_block
grader = Grader(reward_config({{"{FAKES}:hangs": 1.0}}), 10)
grader.grade(rollout_block(["a"]))
print(grader.pid, flush=True)
grader.grade(rollout_block([{text!r}]))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        time.sleep(0.3)
        parent.kill()
    assert wait_for(lambda: not alive(child))
