"""The scorer process with scorers that hang, die, and consume all resources."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import WorkerLostError
from orchestrator.sandbox.guard import descendants
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.grader import Grader
from orchestrator.training.rewards.lanes import FEWEST_TOLERATED
from tests.fakes.graded import reward_config, rollout_block
from tests.processes import alive

pytestmark = pytest.mark.slow

FAKES = "tests.fakes.scorers"
ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 10.0
"""Seconds in which a rollout that does not hang is scored on a busy machine."""
Make = Callable[..., Grader]


@pytest.fixture
def make() -> Iterator[Make]:
    """A grader with one of the fake scorers."""
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


def test_a_hanging_rollout_is_stopped_without_affecting_others(make: Make) -> None:
    grader = make("hangs", timeout_seconds=ENOUGH)
    (pid,) = grader.pids
    scores = grader.grade(rollout_block(["a", "bad", "c", "d"]))
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.TIMEOUT, ScoreStatus.OK, ScoreStatus.OK]
    assert scores.rewards.tolist() == [1.0, -0.5, 1.0, 1.0]
    assert scores.reasons[1] == f"no score within {ENOUGH:g} s"
    assert grader.pids != [pid] and not alive(pid)


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


def test_a_block_of_hanging_rollouts_ends_soon(make: Make) -> None:
    """40 rollouts that hang cost five child processes instead of forty; the
    loop then sees that all failed.
    """
    grader = make("hangs", timeout_seconds=0.3, failure_budget=0.1)
    scores = grader.grade(rollout_block([f"bad {index}" for index in range(40)]))
    tried = [reason for reason in scores.reasons if reason.startswith("no score")]
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT] * 40
    assert len(tried) == FEWEST_TOLERATED + 1


def test_retries_after_a_hang(make: Make) -> None:
    grader = make("hangs", timeout_seconds=ENOUGH, retries=1)
    scores = grader.grade(rollout_block(["bad", "b"]))
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT, ScoreStatus.OK]


def test_loading_does_not_count_against_the_timeout(make: Make) -> None:
    scores = make("slow_to_load", timeout_seconds=ENOUGH).grade(rollout_block(["a"]))
    assert scores.grades.tolist() == [ScoreStatus.OK]


def test_a_process_that_dies_between_blocks_fails_no_rollout(make: Make) -> None:
    grader = make("process_id")
    first = grader.grade(rollout_block(["a"])).rewards[0]
    os.kill(int(first), 9)
    scores = grader.grade(rollout_block(["a"]))
    assert scores.grades.tolist() == [ScoreStatus.OK]
    assert scores.rewards[0] != first


def test_a_process_that_cannot_start_is_a_lost_worker(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerLostError, match="exited with code 1 while it started"):
        make("length").grade(rollout_block(["a"]))


def test_one_process_serves_many_blocks_without_torch(make: Make) -> None:
    grader = make("torch_is_loaded")
    pids = grader.pids
    for _ in range(3):
        assert grader.grade(rollout_block(["a", "b"])).rewards.tolist() == [0.0, 0.0]
    assert grader.pids == pids


def test_output_of_scorers_does_not_reach_stdout(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    make("prints").grade(rollout_block(["a"]))
    out, err = capfd.readouterr()
    assert "a scorer printed this" not in out
    assert "a scorer printed this" in err


def test_output_of_scorers_is_logged_even_if_they_are_killed(tmp_path: Path) -> None:
    log = tmp_path / "reward-0.log"
    config = reward_config({f"{FAKES}:prints": 1.0, f"{FAKES}:holds_the_gil": 1.0}, timeout_seconds=1.0)
    with Grader(config, max_new_tokens=100, output=log) as grader:
        scores = grader.grade(rollout_block(["bad"]))
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT]
    text = log.read_text()
    assert "a scorer printed this" in text
    assert "in holds_the_gil" in text  # the function in which it was stopped


def test_closing_ends_the_process() -> None:
    with Grader(reward_config({"format": 1.0}), max_new_tokens=10) as grader:
        (pid,) = grader.pids
        assert alive(pid)
    assert not alive(pid)


@contextmanager
def running(program: str) -> Generator[subprocess.Popen[str]]:
    """A Python process that is killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("text", ["a", "bad"], ids=["idle", "in a scorer that hangs"])
def test_the_process_ends_with_its_parent(text: str) -> None:
    program = f"""
import sys, threading, time
from orchestrator.training.rewards.grader import Grader
from tests.fakes.graded import reward_config, rollout_block
grader = Grader(reward_config({{"{FAKES}:hangs": 1.0}}), 10)
grader.grade(rollout_block(["a"]))
print(grader.pids[0], flush=True)
grader.grade(rollout_block([{text!r}]))
time.sleep(60)
"""
    with running(program) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        time.sleep(0.3)
    assert wait_for(lambda: not alive(child))


@pytest.mark.parametrize("name", ["a", "bad"], ids=["between rollouts", "in C code that holds the GIL"])
def test_all_processes_started_by_a_scorer_end_with_the_grader(make: Make, name: str, tmp_path: Path) -> None:
    others = set(descendants(os.getpid()))  # such as multiprocessing's resource tracker
    grader = make("starts_orphans", timeout_seconds=4.0)
    tree = [*grader.pids]
    grader.grade(rollout_block([str(tmp_path / name)]))
    tree += map(int, (tmp_path / name).read_text().split())
    grader.close()
    assert len(tree) == 3
    assert wait_for(lambda: not any(map(alive, tree)))
    assert not set(descendants(os.getpid())) - others


def test_killing_a_worker_ends_its_whole_process_tree() -> None:
    program = f"""
import sys, threading, time
from orchestrator.sandbox.guard import descendants
from orchestrator.training.rewards.grader import Grader
from tests.fakes.graded import reward_config, rollout_block
grader = Grader(reward_config({{"{FAKES}:starts_orphans": 1.0}}, timeout_seconds=600.0), 10)
threading.Thread(target=grader.grade, args=(rollout_block(["bad"]),), daemon=True).start()
import os
import psutil
def complete(tree):  # guard, scorer and two orphans; that of the double fork has become the guard's child
    return len(tree) == 4 and len(psutil.Process(tree[0]).children()) == 2
while not complete(found := descendants(os.getpid())):
    time.sleep(0.01)
print(*found, flush=True)
time.sleep(600)
"""
    with running(program) as parent:
        assert parent.stdout is not None
        tree = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(tree) == 4 and all(map(alive, tree))
    assert wait_for(lambda: not any(map(alive, tree)))


HEADER = "00000004"
JUNK = {
    "no frame at all": b"Traceback (most recent call last):".hex(),
    "a huge length": "ffffffff",
    "not JSON": HEADER + b"oops".hex(),
    "not an object": HEADER + b"true".hex(),
}
FORGED = {
    "an answer to another question": '{"scored": 99, "outcomes": [[0, [1.0], "", ""]]}',
    "too many outcomes": '{"scored": 1, "outcomes": [[0, [1.0], "", ""], [0, [1.0], "", ""]]}',
    "text for a component": '{"scored": 1, "outcomes": [[0, ["1.0"], "", ""]]}',
    "two components": '{"scored": 1, "outcomes": [[0, [1.0, 2.0], "", ""]]}',
    "infinity": '{"scored": 1, "outcomes": [[0, [1e999], "", ""]]}',
    "an unknown status": '{"scored": 1, "outcomes": [[7, [], "", ""]]}',
    "no outcome": '{"scored": 1, "outcomes": [null]}',
    "an error at the wrong time": '{"error": ["a", "b", "c", "d"]}',
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_malformed_data_on_the_channel_is_a_crash(make: Make, junk: str) -> None:
    scores = make("sends", timeout_seconds=60.0).grade(rollout_block([junk]))
    assert scores.grades.tolist() == [ScoreStatus.CRASHED]
    assert scores.reasons[0].startswith("the scorers' process ")


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_forged_answer_is_a_crash(make: Make, forged: str) -> None:
    scores = make("forges", timeout_seconds=60.0).grade(rollout_block([forged]))
    assert scores.grades.tolist() == [ScoreStatus.CRASHED]
    assert scores.reasons[0].startswith("the scorers' process sent ")


def test_half_a_message_is_a_timeout(make: Make) -> None:
    scores = make("sends", timeout_seconds=1.0).grade(rollout_block(["00000010", "0000"]))
    assert scores.grades.tolist() == [ScoreStatus.TIMEOUT] * 2


def test_a_closed_channel_is_a_crash(make: Make) -> None:
    scores = make("closes_the_channel", timeout_seconds=60.0).grade(rollout_block(["bad", "a"]))
    assert scores.grades.tolist() == [ScoreStatus.CRASHED, ScoreStatus.OK]


def test_secrets_are_withheld_unless_the_config_names_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "JUDGE_KEY", "JUDGE_URL"):
        monkeypatch.setenv(name, "value")
    texts = ["AWS_SECRET_ACCESS_KEY", "JUDGE_KEY", "JUDGE_URL"]
    block = rollout_block(texts)
    assert make("sees_secrets").grade(block).rewards.tolist() == [0.0, 0.0, 1.0]
    assert make("sees_secrets", environment=["JUDGE_KEY"]).grade(block).rewards.tolist() == [0.0, 1.0, 1.0]


def test_files_are_limited(make: Make) -> None:
    scores = make("writes_a_file", file_bytes=100_000).grade(rollout_block(["a"]))
    assert scores.grades.tolist() == [ScoreStatus.CRASHED]
    assert "File too large" in scores.reasons[0]


# -- several at once -----------------------------------------------------------------------------------------


def test_plain_scorers_that_wait_get_more_processes(make: Make, tmp_path: Path) -> None:
    """Each of six rollouts waits until all six are being scored: with fewer processes none would end."""
    grader = make("waits_for_company", concurrency=6, timeout_seconds=120.0)
    block = rollout_block(list("abcdef"), reference={"folder": str(tmp_path), "company": 6})
    assert grader.grade(block).rewards.tolist() == [1.0] * 6
    assert len(grader.pids) == 6


@pytest.mark.parametrize("scorer", ["waits_for_company_later", "company_in_a_batch"])
def test_asynchronous_and_batched_scorers_share_one_process(make: Make, scorer: str, tmp_path: Path) -> None:
    grader = make(scorer, concurrency=6, timeout_seconds=120.0)
    block = rollout_block(list("abcdef"), reference={"folder": str(tmp_path), "company": 6})
    assert grader.grade(block).rewards.tolist() == [1.0] * 6
    assert len(grader.pids) == 1


def test_cpu_bound_scorers_get_a_single_process(make: Make) -> None:
    grader = make("computes", concurrency=6, timeout_seconds=120.0)
    assert grader.grade(rollout_block(list("abcdef"))).rewards.tolist() == [1.0] * 6
    assert len(grader.pids) == 1


@pytest.mark.parametrize("scorer", ["hangs_later", "blocks_the_loop"])
def test_an_asynchronous_scorer_that_ignores_cancellation_does_not_affect_others(
    make: Make, scorer: str
) -> None:
    grader = make(scorer, concurrency=4, timeout_seconds=2.0)
    scores = grader.grade(rollout_block(["a", "bad", "c", "d", "e", "f"]))
    assert scores.grades.tolist() == [
        ScoreStatus.OK,
        ScoreStatus.TIMEOUT,
        *[ScoreStatus.OK] * 4,
    ]


@pytest.mark.parametrize("scorer", ["dies", "dies_later", "dies_in_a_batch"])
def test_the_death_of_a_process_only_fails_the_rollout_at_fault(make: Make, scorer: str) -> None:
    grader = make(scorer, concurrency=4, timeout_seconds=120.0)
    scores = grader.grade(rollout_block(["a", "b", "bad", "d", "e", "f"]))
    assert scores.grades.tolist() == [*[ScoreStatus.OK] * 2, ScoreStatus.CRASHED, *[ScoreStatus.OK] * 3]
    assert scores.reasons[2] == "the scorers' process died of SIGSEGV"
