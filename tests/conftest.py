"""Runs through the installed command: what a user gets, in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Read once, when torch is imported. The cores are shared out already, by pytest's workers or by ranks, and
# threads that wait for a core that another one has make small tensors many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray gives up on its own processes after half a minute.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "300")

# Under nohup every run would inherit that SIGHUP is ignored, and would rightly go on when it is sent one.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says how busy the machine is. Every run draws the same examples; others are looked
# for with HYPOTHESIS_PROFILE=others. What a test's own settings leave out is taken from here.
_BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("others", _BUSY)
settings.register_profile("any machine", _BUSY, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "any machine"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """On a busy machine Ray stops waiting for processes of its own. Python must not warn about those."""
    if item.get_closest_marker("ray"):
        from ray._private.services import ConsolePopen

        setattr(ConsolePopen, "__del__", lambda process: None)  # noqa: B010 - Popen's own would warn


def pytest_collection_finish() -> None:
    """Keep what collection imported (torch, transformers, ...) out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Tests of hostile text print half a surrogate pair. pytest-xdist sends what was captured as UTF-8, and a
    worker that cannot encode its report stops.
    """
    return printable((yield))


def printable(report: Any) -> Any:
    """A report's data with every surrogate escaped."""
    match report:
        case str():
            return report.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {printable(key): printable(value) for key, value in report.items()}
        case list() | tuple():
            return [printable(each) for each in report]
        case _:
            return report


LONGEST_COMMAND = 900.0
"""Seconds: many times what any command here takes, or any step of a run, on a machine that is busy."""
PROGRAM = Path(sys.executable).parent / "orchestrator"

SMALL = (
    "task.solutions=null",
    "task.train_size=64",
    "task.heldout_size=16",
    "evaluation.prompts=16",
    "evaluation.every=2",
    "rollout.workers=1",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_new_tokens=12",
    "reward.timeout_seconds=300",
    "algorithm=grpo_token",
    "tracking=none",
)
"""Overrides that make a run of `tiny_moe` take seconds. Most of its CPU time is that of the start of its
processes, so it has one rollout worker, unless a test is about several. A scorer that a busy machine holds
up still scores: runs are compared bit for bit.
"""

PATIENT_TRACKING = ("tracking=mlflow", "tracking.delivery.finish_seconds=600")
"""A run is tracked, and waits at its end for MLflow, which a busy machine takes long to import."""


class Program:
    """The command line, with its runs under one output directory."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._environment = {**os.environ, "ORCHESTRATOR_OUTPUT_DIR": str(output_dir)}

    def start(self, *words: str, own_group: bool = False) -> subprocess.Popen[str]:
        """Start a command and go on; with `own_group` in a process group of its own, to send signals to."""
        return subprocess.Popen(
            [str(PROGRAM), *words],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if own_group else None,
        )

    def __call__(self, *words: str, code: int = 0) -> str:
        """Carry a command out; its stdout. The test fails unless it ends with `code`."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=LONGEST_COMMAND)
        assert process.returncode == code, f"{words} ended with {process.returncode}:\n{out}\n{err}"
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        """The JSON document that a command prints."""
        return json.loads(self(*words, "--json", code=code))

    def losses(self, run_id: str) -> dict[int, float]:
        """`policy/loss` by step."""
        lines = (self.output_dir / run_id / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["metrics"]["policy/loss"] for row in rows if "policy/loss" in row["metrics"]}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One output directory for all tests of the session."""
    return Program(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def small_run() -> Callable[..., tuple[str, ...]]:
    """The words of a small run of a job, with more overrides."""

    def words(run_id: str, *overrides: str, job: str = "grpo") -> tuple[str, ...]:
        return ("run", job, "--run-id", run_id, *SMALL, *overrides)

    return words
