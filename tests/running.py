"""What tests do to a run that goes on: wait for it, find its actors, end it.

Such a run has so many steps (`ENDLESS`) that it goes on until the test ends it: on whatever machine, it has
not ended before the test did to it what it wanted to.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from tests.conftest import LONGEST_COMMAND, Program

ENDLESS = "steps=100000"


@contextlib.contextmanager
def going_on(program: Program, *words: str) -> Generator[subprocess.Popen[str]]:
    """An endless run. The body ends it; if the body fails, the run is killed."""
    with program.start(*words, ENDLESS) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def wait_until(happened: Callable[[], bool], what: str, process: subprocess.Popen[str]) -> None:
    """Wait until `happened`. Fails if the process ends before that, or after LONGEST_COMMAND."""
    deadline = time.monotonic() + LONGEST_COMMAND
    while not happened():
        if process.poll() is not None and not happened():
            out, err = process.communicate()
            raise AssertionError(f"the run ended with {process.returncode} before {what}:\n{out}\n{err}")
        assert time.monotonic() < deadline, f"{what} did not come in {LONGEST_COMMAND:g} s"
        time.sleep(0.05)


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has reported `step`, or a later one."""
    wait_until(lambda: last_step(directory) >= step, f"step {step}", process)


def last_step(directory: Path) -> int:
    """The highest step that the run has reported; -1 before the first."""
    metrics = directory / "metrics.jsonl"
    found = re.findall(r'"step":(\d+),', metrics.read_text()) if metrics.exists() else []
    return max(map(int, found), default=-1)


def events_of(directory: Path) -> list[dict[str, Any]]:
    """The whole lines of the run's `events.jsonl`."""
    events = directory / "events.jsonl"
    lines = events.read_text().split("\n")[:-1] if events.exists() else []
    return [json.loads(line) for line in lines]


def pid_of(directory: Path, actor: str) -> int:
    """The process of an actor's newest life."""
    found = re.findall(r"is process (\d+)", (directory / "logs" / f"{actor}.log").read_text())
    return int(found[-1])


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ask the run to end, as Ctrl-C does: it makes a checkpoint and exits with 4."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST_COMMAND)
    assert process.returncode == 4, f"the run ended with {process.returncode}:\n{out}\n{err}"
