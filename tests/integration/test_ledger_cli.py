"""The cost commands as used by scripts: JSON on stdout, exit codes, and rejected inputs."""

import http.server
import json
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.training.usage import (
    Activity,
    CloseReason,
    LeaseClosed,
    LeaseOpened,
    Role,
    RunDeclared,
    SpanRecorded,
    SpoolSink,
    new_event_id,
)

pytestmark = pytest.mark.slow

HOUR = 3_600_000_000_000
START = time.time_ns() - 48 * HOUR

Command = Callable[..., tuple[int, Any]]


def spool(output_dir: Path, run: str, pipeline: str = "pipe", team: str = "blue") -> SpoolSink:
    """The spool of a run of 10 hours on two CPU slots, one of which died after 4 hours."""
    sink = SpoolSink(output_dir / run / "ledger" / "1-controller.jsonl")
    sink.emit(
        RunDeclared(new_event_id(), START, run, 1, "grpo", "final", "o", "c", team, "x", pipeline, "grpo")
    )
    for slot in range(2):
        opened = LeaseOpened(
            new_event_id(), START, f"{run}/{slot}", run, 1, "cpu", "cpu-slot", "n", "pg", slot
        )
        sink.emit(opened)
        for step in range(4):
            begin = START + step * HOUR
            role, activity = Role.LEARNER, Activity.UPDATE
            sink.emit(
                SpanRecorded(
                    new_event_id(),
                    f"{run}/{slot}",
                    f"w{slot}",
                    role,
                    activity,
                    begin,
                    begin + HOUR,
                    step,
                    500_000,
                )
            )
        reason = CloseReason.LOST if slot else CloseReason.RELEASED
        sink.emit(LeaseClosed(new_event_id(), START + 10 * HOUR, f"{run}/{slot}", reason))
    return sink


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ORCHESTRATOR_OUTPUT_DIR", str(tmp_path))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER_URL", raising=False)

    def call(*words: str) -> tuple[int, Any]:
        code = run_command_line(["cost", *words, "--json"])
        output = capsys.readouterr().out
        return code, json.loads(output) if output else None

    return call


def test_a_run_is_reported_whether_or_not_its_spool_was_shipped(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    code, report = command("report", "run-a")
    assert code == 0
    rows = {(row["role"], row["activity"]): row["ns"] for row in report["rows"]}
    assert rows == {("learner", "update"): 8 * HOUR, ("none", "idle"): 6 * HOUR, ("none", "lost"): 6 * HOUR}
    assert report["leased_ns"] == report["attributed_ns"] + report["idle_ns"] == 20 * HOUR
    assert (report["difference_ns"], report["accelerator_hours"]) == (0, "20.000000")
    assert report["amount"] == "0.816000"  # 20 hours at half of $0.0816


def test_a_pipeline_report_has_all_its_runs_split_by_dimensions(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    spool(tmp_path, "run-b", team="green").close()
    spool(tmp_path, "run-c", pipeline="other").close()
    assert command("report", "pipe")[1]["accelerator_hours"] == "40.000000"
    _, by_team = command("report", "--by", "team,purpose")
    assert [(row["team"], row["purpose"], row["accelerator_hours"]) for row in by_team["rows"]] == [
        ("blue", "final", "40.000000"),
        ("green", "final", "20.000000"),
    ]
    assert by_team["total"]["ns"] == 60 * HOUR
    _, of_run = command("report", "run-b", "--by", "activity")
    assert of_run["total"]["ns"] == 20 * HOUR


def test_a_run_whose_purpose_changes_leaves_the_headline(command: Command, tmp_path: Path):
    for run in ("run-a", "run-b"):
        spool(tmp_path, run).close()
    before = command("headline", "pipe")[1]
    assert command("purpose", "run-b", "failed") == (0, {"run_id": "run-b", "purpose": "failed"})
    _, by_purpose = command("report", "pipe", "--by", "run,purpose")
    assert [(row["run"], row["purpose"]) for row in by_purpose["rows"]] == [
        ("run-a", "final"),
        ("run-b", "failed"),
    ]
    after = command("headline", "pipe")[1]
    assert Decimal(after["headline"]["amount"]) * 2 == Decimal(before["headline"]["amount"])
    assert after["full"]["amount"] == before["full"]["amount"]
    assert command("purpose", "run-b", "good")[0] == 2
    assert command("purpose", "nobody", "failed")[0] == 2


def test_late_lines_enter_the_next_report_and_bad_ones_the_quarantine(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    command("report", "run-a")
    path = tmp_path / "run-a" / "ledger" / "1-controller.jsonl"
    span = SpanRecorded("out", "run-a/0", "w0", Role.LEARNER, Activity.SYNC, START, START + 99 * HOUR, 0, 0)
    sink = SpoolSink(path)
    sink.emit(span)
    sink.close()
    with path.open("a") as file:
        file.write("{oops\n")
    _, rows = command("quarantine", "run-a")
    assert rows[0]["row"] == f"{path}:15"
    assert rows[1]["row"] == "event out" and "outside lease run-a/0" in rows[1]["reason"]


def test_waste_unit_costs_and_forecast_of_a_run(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    _, waste = command("waste", "run-a")
    assert {row["kind"]: row["accelerator_hours"] for row in waste["rows"] if row["ns"]} == {
        "idle": "6.000000",
        "lost": "6.000000",
        "useful": "8.000000",
    }
    _, units = command("units", "run-a")
    trained = next(unit for unit in units["units"] if unit["unit"] == "million trained tokens")
    assert (trained["count"], trained["amount"]) == ("4.000000", "0.204000")
    _, forecast = command("forecast", "run-a", "--steps", "10")
    assert forecast["amount"]["expected"] == "1.305600"  # 6 more hours on two slots
    _, trend = command("trend", "--every", "day", "--by", "team")
    assert {row["team"] for row in trend["rows"]} == {"blue"}


def test_only_past_months_can_be_closed_and_their_chain_is_valid(command: Command, tmp_path: Path):
    assert command("prices", "adopt", "aws") == (0, {"name": "aws", "adopted": True})
    assert command("prices", "adopt", "aws") == (0, {"name": "aws", "adopted": False})
    month = time.strftime("%Y-%m", time.gmtime())
    code, error = command("close", month)
    assert (code, error["key"]) == (2, "month")
    code, closed = command("close", "2025-01")
    assert (code, closed["month"], closed["postings"]) == (0, "2025-01", 0)
    assert command("verify")[1]["closed"] == [closed]


class Listener(http.server.BaseHTTPRequestHandler):
    heard: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_budget_warns_once_and_an_exhausted_one_exits_with_3(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    Listener.heard = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        hook = f"http://127.0.0.1:{server.server_port}/hook"
        month = time.strftime("%Y-%m", time.gmtime())
        assert command("budget", "set", "b", "--limit", "0", "--from", month)[0] == 0
        for _ in range(2):
            code, rows = command("budget", "check", "b", "--webhook", hook)
            assert (code, rows[0]["available"]) == (3, "0.000000")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [message["threshold"] for message in Listener.heard] == ["0.5", "0.8", "0.95"]


def test_a_budget_is_compared_with_the_usage(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    first = time.strftime("%Y-%m-%d", time.gmtime(START / 1e9))
    last = time.strftime("%Y-%m-%d", time.gmtime(START / 1e9 + 4 * 86400))
    command("budget", "set", "b", "--limit", "10", "--from", first, "--to", last, "--scope", "team=blue")
    _, rows = command("budget", "variance")
    assert rows[0]["actual"] == "0.82"
    assert command("budget", "list")[1][0]["available"] == "10.000000"
    assert command("forecast")[1] == rows


def test_reports_are_written_in_every_format(command: Command, tmp_path: Path):
    spool(tmp_path, "run-a").close()
    for suffix in ("csv", "xlsx", "parquet", "html"):
        assert command("report", "--by", "team", "--output", str(tmp_path / f"costs.{suffix}"))[0] == 0
        assert command("report", "run-a", "--output", str(tmp_path / f"run.{suffix}"))[0] == 0
        assert (tmp_path / f"costs.{suffix}").stat().st_size > 0
    assert command("report", "--by", "team", "--output", "costs.doc")[0] == 2


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["report", "nobody"], "run"),
        (["report"], "cost report"),
        (["report", "--by", "colour"], "by"),
        (["report", "--by", "team,team"], "by"),
        (["report", "run-a", "--from", "2026-01"], "--from, --to"),
        (["report", "--by", "team", "--from", "yesterday"], "--from"),
        (["report", "--by", "team", "--from", "2026-03", "--to", "2026-02"], "--to"),
        (["report", "--by", "team", "--as-of", "2999-01-01"], "as-of"),
        (["report", "--by", "team", "--as-of", "then"], "--as-of"),
        (["report", "--by", "team", "--ledger", "mysql://x/y"], "ledger.url"),
        (["report", "--by", "team", "--ledger", "postgresql://127.0.0.1:1/none"], "ledger.url"),
        (["report", "--by", "team", "--price-book", "moon"], "price_book"),
        (["close", "September"], "month"),
        (["ship", "/nowhere"], "DIRECTORY"),
        (["budget", "set", "b", "--limit", "many", "--from", "2026-01"], "--limit"),
        (["budget", "set", "b", "--limit", "1", "--from", "2026-01", "--scope", "colour=red"], "scope"),
        (["budget", "check", "nobody"], "budget"),
        (["forecast", "run-a", "--steps", "0"], "command line"),
        (["forecast", "run-a"], "--steps"),
        (["trend", "--every", "year"], "--every"),
    ],
)
def test_impossible_requests_exit_with_2_and_a_reason(
    command: Command, tmp_path: Path, words: list[str], key: str
):
    spool(tmp_path, "run-a").close()
    code, error = command(*words)
    assert (code, error["key"]) == (2, key)
    assert error["error"] and error["allowed"]
