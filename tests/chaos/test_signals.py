"""SIGINT, SIGTERM and SIGHUP at seeded moments of a run: a checkpoint if there is something to save, exit
code 4, the correct state, and nothing left behind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState
from orchestrator.training.checkpoints.format import complete, verify
from tests.conftest import LONGEST_COMMAND, Program
from tests.running import ENDLESS, last_step, wait_until
from tests.support.lanes import also_long

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SmallRun = Callable[..., tuple[str, ...]]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Moment:
    """The moment of the signal: a file that appears in the run directory, and some seconds more."""

    mark: str
    seconds: float
    number: signal.Signals
    to_group: bool

    def __str__(self) -> str:
        return f"{self.mark}+{self.seconds:.2f}s-{self.number.name}{'-group' if self.to_group else ''}"


def seeded_moments(count: int) -> list[Moment]:
    """`process` is the start of the process, `begun` that of the run; Ray and the actors start after that."""
    draw = random.Random(7)
    marks = {"process": 4.0, "begun": 12.0, "actors": 6.0, "step 0": 2.0, "step 1": 2.0, "checkpoint": 1.0}
    moments: list[Moment] = []
    for index in range(count):
        mark = list(marks)[index % len(marks)]
        longest = marks[mark]
        moments.append(
            Moment(mark, draw.uniform(0.3, longest), draw.choice(SIGNALS), to_group=draw.random() < 0.5)
        )
    return moments


MOMENTS = seeded_moments(30)
FEW = MOMENTS[0:6:2]
"""At the start of the process, of the actors, and after a step."""


def reached(mark: str, directory: RunDirectory) -> bool:
    if mark == "process":
        return True
    if mark == "begun":
        return directory.state.exists()
    if mark == "actors":
        return (directory.path / "logs").is_dir()
    if mark == "checkpoint":
        return bool(complete(directory.checkpoints))
    return last_step(directory.path) >= int(mark.split()[1])


def check_stop_at(moment: Moment, program: Program, words: tuple[str, ...], run_id: str) -> None:
    directory = RunDirectory(program.output_dir / run_id)
    with program.start(*words, ENDLESS, own_group=True) as process:
        try:
            wait_until(lambda: reached(moment.mark, directory), moment.mark, process)
            time.sleep(moment.seconds)
            send = os.killpg if moment.to_group else os.kill
            send(process.pid, moment.number)
            out, err = process.communicate(timeout=LONGEST_COMMAND)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 4, f"{moment}:\n{out}\n{err}"
    assert "*** SIG" not in err and "Traceback" not in err, err
    if not directory.state.exists():
        assert "nothing was started" in err
        return
    record = directory.record()
    assert (record.state, moment.number.name in record.why) == (RunState.DRAINED, True), record
    checkpoints = complete(directory.checkpoints)
    if last_step(directory.path) > 0:
        assert int(checkpoints[-1].name.removeprefix("step-")) >= last_step(directory.path)
    for checkpoint in checkpoints:
        verify(checkpoint)
    assert not [path for path in directory.checkpoints.iterdir() if path.name.startswith(".")]
    assert not processes_with(str(directory.path)), "processes of the run are left"


def processes_with(text: str) -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if text in line]


@pytest.mark.parametrize("moment", also_long(FEW, [each for each in MOMENTS if each not in FEW]), ids=str)
def test_a_signal_stops_a_run_in_an_orderly_way(
    program: Program, small_run: SmallRun, moment: Moment
) -> None:
    run_id = f"signal-{abs(hash(str(moment))) % 10**8}"
    words = small_run(run_id, "checkpoint.every=2", "evaluation.every=0")
    check_stop_at(moment, program, words, run_id)


def test_a_second_signal_ends_a_run_immediately(program: Program, small_run: SmallRun) -> None:
    directory = RunDirectory(program.output_dir / "twice")
    with program.start(*small_run("twice", "checkpoint.every=0"), ENDLESS, own_group=True) as process:
        try:
            wait_until(lambda: reached("begun", directory), "the start", process)
            process.send_signal(signal.SIGTERM)
            time.sleep(1.2)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LONGEST_COMMAND)
        except BaseException:
            process.kill()
            raise
    assert process.returncode in (4, 128 + signal.SIGTERM)  # the first signal may have taken effect already
    if process.returncode != 4:
        record = directory.record()
        assert (record.state, "second SIGTERM" in record.why) == (RunState.FAILED, True)


def test_a_running_run_refuses_another_writer_and_a_killed_one_is_reported_as_failed(
    program: Program, small_run: SmallRun
) -> None:
    """Resuming a run whose process is alive is rejected before anything is written. After the run was killed
    while its actors start, `status` says how to resume it.
    """
    directory = RunDirectory(program.output_dir / "one-writer")
    with program.start(*small_run("one-writer", "checkpoint.every=0"), ENDLESS) as process:
        try:
            wait_until(directory.config.exists, "the config", process)
            before = directory.config.read_bytes()
            refused = program.json("resume", "one-writer", "steps=999999", "purpose=final", code=2)
            assert f"process {process.pid}" in refused["error"]
            assert directory.config.read_bytes() == before
            assert directory.record().attempt == 1
            wait_until(lambda: reached("actors", directory), "the actors", process)
        finally:
            process.kill()
    status = program.json("status", "one-writer")
    assert status["state"] == "failed"
    assert "is gone" in status["why"] and "orchestrator resume one-writer" in status["why"]
