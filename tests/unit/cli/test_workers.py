"""`orchestrator workers`: what it shows, and what it refuses before it asks the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli import workers
from orchestrator.cli.app import run_command_line
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.pool_requests import take_all
from orchestrator.runs.record import RunState
from orchestrator.runs.status import status_document

AT_NS = 1_795_503_428_000_000_000


class Answer(SimpleNamespace):
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "r1")
    directory.create()
    directory.begin(job="grpo", purpose="final", steps=5, at_ns=AT_NS)
    return directory


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("ORCHESTRATOR_OUTPUT_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 0.0)

    def call(*arguments: str) -> Answer:
        code = run_command_line(["workers", *arguments])
        out, err = capsys.readouterr()
        return Answer(code=code, out=out, err=err)

    return call


def shown(*states: str, wanted: int = 3, min_workers: int = 2) -> dict[str, Any]:
    return {
        "wanted": wanted,
        "min_workers": min_workers,
        "workers": [
            {
                "name": f"rollout-{index}",
                "state": state,
                "since_ns": AT_NS,
                "permanent": index < min_workers,
                "detail": "a slot" if state == "waiting" else "",
            }
            for index, state in enumerate(states)
        ],
    }


def test_the_workers_and_their_states_are_shown(call: Call, run: RunDirectory) -> None:
    assert call("r1").out == "Run r1 has not started its rollout workers yet.\n"
    run.write_workers(shown("running", "restarting", "waiting"))
    text = call("r1").out
    assert "1 of 3 rollout workers are running; at least 2 must stay." in text
    rows = [line.split() for line in text.splitlines()]
    assert ["rollout-2", "waiting", "2026-11-24T06:57:08Z", "no", "a", "slot"] in rows
    document = json.loads(call("r1", "--json").out)
    assert (document["wanted"], document["running"], document["min_workers"]) == (3, 1, 2)
    assert document["workers"][2] == {
        "name": "rollout-2",
        "state": "waiting",
        "since": "2026-11-24T06:57:08Z",
        "permanent": False,
        "detail": "a slot",
    }
    assert status_document(run)["workers"] == {"wanted": 3, "running": 1, "min_workers": 2}


def test_a_run_that_has_ended_or_begins_again_has_none(call: Call, run: RunDirectory) -> None:
    run.write_workers(shown("running", "running"))
    run.write_state(RunState.DONE, "", AT_NS)
    assert call("r1").out == "Run r1 has no rollout workers: it is done.\n"
    refused = call("r1", "--add", "1")
    assert (refused.code, refused.err) == (2, "orchestrator: Run r1 is not running: it is done.\n")
    run.release()
    run.begin(job="grpo", purpose="final", steps=9, at_ns=AT_NS)
    assert call("r1").out == "Run r1 has not started its rollout workers yet.\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("r1", "--add", "0"), "--add: got 0, allowed: 1 to 1000"),
        (("r1", "--remove", "-2"), "--remove: got -2, allowed: 1 to 1000"),
        (("r1", "--add", "1", "--remove", "1"), "--add: got 1, allowed: nothing if --remove is given"),
        (("r1", "--add", "1", "--now"), "--now: got without --remove"),
        (("r1", "--now"), "--remove: got None"),
        (("r1", "--add", "two"), "Invalid value"),
        (("other", "--add", "1"), "No run matches other. There are: r1"),
        (
            ("r1", "--remove", "2"),
            "2 of 3 rollout workers cannot leave run r1: at least 2 must stay (rollout.min_workers).",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused_and_not_made(
    arguments: tuple[str, ...], told: str, call: Call, run: RunDirectory
) -> None:
    run.write_workers(shown("running", "running", "running"))
    answer = call(*arguments)
    assert answer.code == 2
    assert told in answer.err
    assert take_all(run.requests) == []


def test_a_request_waits_for_a_run_that_is_starting(call: Call, run: RunDirectory) -> None:
    answer = call("r1", "--add", "2")
    assert answer.code == 0
    assert answer.out.startswith(
        "Asked r1 for 2 rollout workers to join. It has not answered yet: it does so once it trains."
    )
    (request,) = take_all(run.requests)
    assert (getattr(request, "change", 0), getattr(request, "at_once", None)) == (2, False)


@pytest.mark.parametrize("refused", ["", "there is no room"])
def test_the_answer_of_the_run_is_shown(
    refused: str, call: Call, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_workers(shown("running", "running", "running"))
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 60.0)

    def answer() -> None:
        requests: list[Any] = []
        while not requests:
            requests = list(take_all(run.requests))
        fields = {"request": requests[0].request_id, "change": -1, "wanted": 2, "refused": refused}
        run.append_event("pool_requested", fields, AT_NS)

    answering = threading.Thread(target=answer)
    answering.start()
    shown_to_user = call("r1", "--remove", "1", "--now")
    answering.join()
    if refused:
        assert (shown_to_user.code, shown_to_user.err) == (
            2,
            "orchestrator: Run r1 refused: there is no room\n",
        )
    else:
        assert shown_to_user.out == (
            "Asked r1 for 1 rollout worker to leave; it wants 2 now. To follow: orchestrator workers r1\n"
        )


def test_a_run_directory_that_cannot_be_written_is_named(call: Call, run: RunDirectory) -> None:
    run.requests.write_text("a file is in the way")
    answer = call("r1", "--add", "1")
    assert answer.code == 1
    assert "The request cannot be written to" in answer.err
