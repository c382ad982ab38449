"""Commands for a run in progress: watch, stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json
from orchestrator.errors import StateError
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState


def watch(reference: str, output_dir: Path, every_seconds: float, as_json: bool) -> int:
    """Show a run until it ends and return its exit code. With `as_json`, print only its final status."""
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
    """Ask a run to stop. It writes a checkpoint and exits with code 4.

    Raises StateError if the run is not running, or if its process cannot be reached from here.
    """
    run = runs.find_run(output_dir, reference)
    record = runs.observe(run)
    if record.state is not RunState.RUNNING or record.process is None:
        raise StateError(f"Run {run.run_id} is not running: it is {record.state.value}.")
    process = record.process
    if process.is_alive() is None:
        raise StateError(
            f"Run {run.run_id} cannot be stopped from here: its process {process.pid} belongs to another"
            f" machine or container ({process.host}). Send it SIGTERM there."
        )
    try:
        os.kill(process.pid, signal.SIGINT)
    except PermissionError as error:
        raise StateError(
            f"Run {run.run_id} cannot be stopped: process {process.pid} belongs to another user."
        ) from error
    except ProcessLookupError as error:
        raise StateError(f"Run {run.run_id} is not running: it has just ended.") from error
    if as_json:
        print_json({"run_id": run.run_id, "pid": process.pid, "signal": "SIGINT"})
    else:
        terminal.say(
            f"Asked {run.run_id} (process {process.pid}) to stop after a checkpoint."
            f" To continue it later: orchestrator resume {run.run_id}"
        )
    return 0


def _wait(run: RunDirectory, every_seconds: float) -> None:
    while not runs.observe(run).state.is_final:
        time.sleep(every_seconds)


def _show(run: RunDirectory, every_seconds: float) -> None:
    from orchestrator.cli import progress
    from orchestrator.config.compose import load_to_read

    progress.watch(
        run, terminal.console(), load_to_read(run.config).budget.currency, poll_seconds=every_seconds
    )
