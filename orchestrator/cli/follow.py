"""Commands about a run that is going on: watch, stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from orchestrator.cli.output import print_json
from orchestrator.errors import ConfigError, RunNotFoundError
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState


def watch(reference: str, output_dir: Path, every_seconds: float, as_json: bool) -> int:
    """Show a run until it ends; then its exit code. With `as_json` only its last status is printed."""
    run = runs.find_run(output_dir, reference)
    try:
        if as_json:
            _wait(run, every_seconds)
            print_json(runs.status_document(run))
        else:
            _show(run, every_seconds)
    except KeyboardInterrupt:
        return 0
    return runs.observe(run).state.exit_code


def stop(reference: str, output_dir: Path, as_json: bool) -> int:
    """Send SIGINT to the process of a run: it makes a checkpoint and exits 4.

    Raises ConfigError if the run is not running, or its process can't be reached from this machine.
    """
    run = runs.find_run(output_dir, reference)
    record = runs.observe(run)
    if record.state is not RunState.RUNNING or record.process is None:
        raise ConfigError("run", run.run_id, "a run that is running", f"it is {record.state.value}")
    process = record.process
    if process.is_alive() is None:
        raise ConfigError("run", run.run_id, f"a run of this machine; this one is on {process.host}")
    try:
        os.kill(process.pid, signal.SIGINT)
    except PermissionError as error:
        raise ConfigError(
            "run", run.run_id, "a run of yours", f"process {process.pid} is another user's"
        ) from error
    except ProcessLookupError as error:
        raise RunNotFoundError("run", run.run_id, "a run that is running", "it has just ended") from error
    if as_json:
        print_json({"run_id": run.run_id, "pid": process.pid, "signal": "SIGINT"})
    else:
        print(  # noqa: T201
            f"asked {run.run_id} (process {process.pid}) to stop; it makes a checkpoint first. "
            f"orchestrator resume {run.run_id} goes on with it"
        )
    return 0


def _wait(run: RunDirectory, every_seconds: float) -> None:
    while not runs.observe(run).state.is_final:
        time.sleep(every_seconds)


def _show(run: RunDirectory, every_seconds: float) -> None:
    from rich.console import Console

    from orchestrator.cli import progress
    from orchestrator.config.compose import load

    progress.watch(run, Console(), load(run.config).budget.currency, poll_seconds=every_seconds)
