"""A run that shares a budget: it warns, stops before the limit with a checkpoint, and continues later."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import PATIENT_TRACKING, Program

pytestmark = [pytest.mark.slow, pytest.mark.ray]

MONTH = time.strftime("%Y-%m", time.gmtime())
SECRET = "s3cr3t-p4th"
SECOND = 2 * Decimal("0.0408") / 3600
"""The cost of a second of two slots according to the price book `laptop`."""


class Hook(http.server.ThreadingHTTPServer):
    """A webhook that records the messages that it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Listener)
        self.heard: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook/{SECRET}"


class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Hook)
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def set_budget(program: Program, name: str, seconds: int) -> None:
    limit = f"{SECOND * seconds:.6f}"
    words = ("cost", "budget", "set", name, "--limit", limit, "--from", MONTH)
    program(*words, "--scope", f"team={name}", "--warn-at", "0.1")


def budget_of(program: Program, name: str) -> dict[str, Any]:
    (budget,) = [each for each in program.json("cost", "budget", "list") if each["name"] == name]
    return budget


def run_until_stopped(program: Program, small_run: Callable[..., tuple[str, ...]], hook: Hook) -> str:
    """The name of a run that its budget has stopped, its team and the budget. The budget is the smallest of
    several with which this machine can start a run: smaller ones are used up before the first step.
    """
    rules = ("steps=100000", "rollout.workers=2", *PATIENT_TRACKING, "checkpoint.every=0")
    for seconds in (150, 400, 850):
        name = f"thrifty-{seconds}"
        hook.heard.clear()
        set_budget(program, name, seconds)
        budget = ("budget.stop_seconds=60", "budget.reserve_seconds=4", f"budget.webhook={hook.url}")
        program(*small_run(name, f"team={name}", *rules, *budget), code=3)
        if program.json("status", name)["step"]:
            return name
    pytest.fail("the run never came to its first step")


def assert_settled(program: Program, budget: dict[str, Any]) -> None:
    """The cost of the run is settled, to within seconds, because a lease may
    end while its cost is queried.
    """
    cost = Decimal(program.json("cost", "report", budget["name"])["amount"])
    assert cost <= Decimal(budget["settled"]) <= cost + 5 * SECOND


@pytest.mark.long
def test_a_team_budget_stops_a_run_that_continues_when_it_is_raised(
    program: Program, small_run: Callable[..., tuple[str, ...]], hook: Hook
) -> None:
    name = run_until_stopped(program, small_run, hook)
    status = program.json("status", name)
    assert status["state"] == "budget" and f"budget {name}" in status["why"]
    assert list((program.output_dir / name / "checkpoints").glob("step-*/manifest.json"))
    budget = budget_of(program, name)
    assert 0 < Decimal(budget["settled"]) <= Decimal(budget["limit"])
    assert_settled(program, budget)
    assert Decimal(budget["pending"]) == 0
    assert [(told["name"], told["threshold"]) for told in hook.heard] == [(name, "0.1")]
    client = MlflowClient(f"sqlite:///{program.output_dir / 'mlflow.db'}")
    tags = [
        run.data.tags
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    assert hook.heard[0]["text"] in [tag["budget"] for tag in tags if "budget" in tag]

    for file in (path for path in program.output_dir.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file
    told_again = f"budget.webhook={hook.url}"
    refused = program.json("resume", name, code=2)
    assert (refused["key"], refused["value"]) == (
        "budget.webhook",
        f"http://127.0.0.1:{hook.server_port}/***",
    )
    program("resume", name, told_again, code=3)  # almost nothing is left: it stops early
    status = program.json("status", name)
    assert status["state"] == "budget"

    set_budget(program, name, seconds=4000)
    program("resume", name, told_again, f"steps={status['step'] + 1}")
    assert program.json("status", name)["state"] == "done"
    assert_settled(program, budget_of(program, name))


def test_a_run_continues_while_its_ledger_is_unavailable(
    program: Program, small_run: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    away = "postgresql://nobody@127.0.0.1:1/nowhere"
    program(*small_run("away", "steps=1", "evaluation.every=0", f"ledger.url={away}"))
    assert program.json("status", "away")["state"] == "done"
    log = (program.output_dir / "away" / "run.log").read_text()
    assert "the ledger can't be reached, events stay in" in log
    here = f"sqlite:///{tmp_path}/later.db"
    report = program.json("cost", "report", "away", "--ledger", here)
    assert report["difference_ns"] == 0 and report["leased_ns"] > 0


@pytest.mark.long
def test_a_step_that_does_not_end_is_cancelled_before_the_limit_is_exceeded(
    program: Program, small_run: Callable[..., tuple[str, ...]]
) -> None:
    """The step is the first evaluation, whose answers are scored forever. (Training rollouts in flight are
    abandoned immediately when a run is asked to stop.) As above, a machine that cannot start within the
    smaller limit gets a larger one.
    """
    endless = r"+reward.components={tests.fakes.scorers\:never_ends: 1.0}"
    rules = ("budget.stop_seconds=20", "budget.cancel_seconds=15", "reward.timeout_seconds=3000")
    size = ("steps=2", "rollout.workers=2")
    for seconds in (110, 330, 800):
        run, limit = f"endless-{seconds}", SECOND * seconds
        program(*small_run(run, endless, *rules, *size, f"budget.limit={limit:.6f}"), code=3)
        status = program.json("status", run)
        assert (status["state"], status["step"]) == ("budget", 0)
        report = program.json("cost", "report", run)
        assert report["difference_ns"] == 0
        assert limit / 3 < Decimal(report["amount"]) <= limit
        if "cancelled in the middle of a step" in status["why"]:
            return
    pytest.fail("the run never came to its first step")
