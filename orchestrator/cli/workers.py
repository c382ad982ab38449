"""The command `workers`: shows the rollout workers of a run, and asks it for more or fewer of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import ConfigError, OrchestratorError, StateError
from orchestrator.runs import pool_requests
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.pool_requests import MOST_WORKERS
from orchestrator.runs.record import RunState

ANSWER_SECONDS = 15.0
"""How long the command waits for the run to act on a request."""


def show(reference: str, output_dir: Path, as_json: bool) -> int:
    """Print the rollout workers of a run; a pipeline shows those of its newest stage."""
    run = _training_run(reference, output_dir)
    document = runs.workers_document(run)
    if as_json:
        print_json(document)
        return 0
    rows = [
        (each["name"], each["state"], each["since"], "yes" if each["permanent"] else "no", each["detail"])
        for each in document["workers"]
    ]
    if rows:
        terminal.say(
            f"{document['running']} of {document['wanted']} rollout workers are running;"
            f" at least {document['min_workers']} must stay."
        )
    empty = f"Run {run.run_id} has no rollout workers: it is {document['state']}."
    if document["state"] == RunState.RUNNING.value:
        empty = f"Run {run.run_id} has not started its rollout workers yet."
    print_table(("worker", "state", "since", "must stay", "detail"), rows, empty)
    return 0


def change(
    reference: str, output_dir: Path, add: int | None, remove: int | None, at_once: bool, as_json: bool
) -> int:
    """Ask a run for `add` more or `remove` fewer rollout workers, and wait until it has acted on that.

    Raises ConfigError for numbers that make no sense, StateError if the run does not train or refuses.
    """
    by = _change(add, remove, at_once)
    run = _training_run(reference, output_dir)
    document = runs.workers_document(run)
    if document["state"] != RunState.RUNNING.value:
        raise StateError(f"Run {run.run_id} is not running: it is {document['state']}.")
    if document["workers"] and document["wanted"] + by < document["min_workers"]:
        raise StateError(
            f"{-by} of {document['wanted']} rollout workers cannot leave run {run.run_id}: at least"
            f" {document['min_workers']} must stay (rollout.min_workers)."
        )
    request = pool_requests.new_request(by, at_once)
    try:
        pool_requests.make(run.requests, request)
    except OSError as error:
        raise OrchestratorError(f"The request cannot be written to {run.requests}: {error}.") from error
    outcome = _outcome(run, request.request_id)
    if outcome is not None and outcome["refused"]:
        raise StateError(f"Run {run.run_id} refused: {outcome['refused']}")
    wanted = None if outcome is None else outcome["wanted"]
    if as_json:
        print_json(
            {
                "run_id": run.run_id,
                "request": request.request_id,
                "change": by,
                "accepted": outcome is not None,
                "wanted": wanted,
            }
        )
    else:
        terminal.say(_told(run, by, wanted))
    return 0


def _change(add: int | None, remove: int | None, at_once: bool) -> int:
    if add is not None and remove is not None:
        raise ConfigError("--add", str(add), "nothing if --remove is given", "one request does one of them")
    option, count = ("--remove", remove) if add is None else ("--add", add)
    if count is None or not 1 <= count <= MOST_WORKERS:
        raise ConfigError(option, str(count), f"1 to {MOST_WORKERS}")
    if at_once and remove is None:
        raise ConfigError("--now", "without --remove", "--remove N --now", "workers join as soon as they can")
    return count if remove is None else -count


def _training_run(reference: str, output_dir: Path) -> RunDirectory:
    run = runs.find_run(output_dir, reference)
    return runs.leading_stage(run, run.record())


def _outcome(run: RunDirectory, request_id: str) -> dict[str, Any] | None:
    """What the run recorded about the request; None if it has not taken it in time."""
    until = time.monotonic() + ANSWER_SECONDS
    while True:
        for event in run.read_events("pool_requested"):
            if event["request"] == request_id:
                return event
        if runs.observe(run).state is not RunState.RUNNING:
            raise StateError(f"Run {run.run_id} ended before it acted on the request.")
        if time.monotonic() > until:
            return None
        time.sleep(0.2)


def _told(run: RunDirectory, by: int, wanted: int | None) -> str:
    workers = f"{abs(by)} rollout worker{'s' if abs(by) > 1 else ''}"
    what = f"{workers} to {'join' if by > 0 else 'leave'}"
    follow = f"To follow: orchestrator workers {run.run_id}"
    if wanted is None:
        return f"Asked {run.run_id} for {what}. It has not answered yet: it does so once it trains. {follow}"
    return f"Asked {run.run_id} for {what}; it wants {wanted} now. {follow}"
