"""Real wrapped commands, stopped and killed at the worst moments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.ledger.booking import STANDARD_POLICY, Ending, book
from orchestrator.ledger.events import Event, SpanRecorded, event_from_json
from tests.processes import alive

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).parent / "orchestrator"
SLEEPER = "; ".join(
    [
        "import os, pathlib, sys, time",
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))",
        "time.sleep(1000)",
    ]
)


def wrap(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    options = ["--output-dir", str(folder), "--run-id", "w", "--cpus", "2", "--every", "0.1"]
    return subprocess.Popen([str(PROGRAM), "cost", "wrap", *options, "--purpose", "final", *words])


def sleeper(folder: Path) -> list[str]:
    return ["--", sys.executable, "-c", SLEEPER, str(folder / "pid")]


def until(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def spooled(folder: Path) -> list[Event]:
    file = folder / "w" / "ledger" / "wrap.jsonl"
    if not file.exists():
        return []
    return [event_from_json(line) for line in file.read_text().split("\n")[:-1]]


def beats(folder: Path) -> int:
    return sum(isinstance(event, SpanRecorded) for event in spooled(folder))


def sleeping(folder: Path) -> bool:
    """Whether the command has started and printed its process id."""
    return (folder / "pid").exists() and (folder / "pid").read_text() != ""


def test_a_killed_wrapper_ends_its_leases_with_its_last_heartbeat(tmp_path: Path) -> None:
    wrapper = wrap(tmp_path, *sleeper(tmp_path))
    until(lambda: beats(tmp_path) >= 6 and sleeping(tmp_path))
    command = int((tmp_path / "pid").read_text())
    wrapper.kill()
    wrapper.wait()
    until(lambda: not alive(command))
    events = spooled(tmp_path)
    last = max(event.end_ns for event in events if isinstance(event, SpanRecorded))
    booked, rejected = book(events, last + 10**15)
    assert rejected == []
    assert [lease.ending for lease in booked] == [Ending.ABANDONED] * 2
    for lease in booked:
        lost = sum(piece.ns for piece in lease.slices if piece.activity == "lost")
        worked = sum(piece.ns for piece in lease.slices if piece.activity == "run")
        assert lease.end_ns <= last + STANDARD_POLICY.grace_ns
        assert lost == STANDARD_POLICY.grace_ns
        assert worked + lost == lease.ns


def test_a_stopped_wrapper_stops_its_command_and_settles(tmp_path: Path) -> None:
    wrapper = wrap(tmp_path, *sleeper(tmp_path))
    until(lambda: beats(tmp_path) >= 2 and sleeping(tmp_path))
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(300) == 128 + signal.SIGTERM
    booked, _ = book(spooled(tmp_path), time.time_ns())
    assert [lease.ending for lease in booked] == [Ending.RELEASED] * 2
    report = ["cost", "report", "w", "--json", "--output-dir", str(tmp_path)]
    document = json.loads(subprocess.run([str(PROGRAM), *report], check=True, capture_output=True).stdout)
    assert document["leased_ns"] == sum(lease.ns for lease in booked)
    assert document["idle_ns"] == document["difference_ns"] == 0


def test_a_killed_command_has_the_purpose_failed(tmp_path: Path) -> None:
    wrapper = wrap(tmp_path, *sleeper(tmp_path))
    until(lambda: sleeping(tmp_path))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert wrapper.wait(300) == 137
    words = ["cost", "report", "--by", "purpose", "--json", "--output-dir", str(tmp_path)]
    document = json.loads(subprocess.run([str(PROGRAM), *words], check=True, capture_output=True).stdout)
    assert [row["purpose"] for row in document["rows"]] == ["failed"]


def test_an_unavailable_ledger_only_causes_a_message(tmp_path: Path) -> None:
    words = [str(PROGRAM), "cost", "wrap", "--output-dir", str(tmp_path), "--run-id", "w", "--cpus", "1"]
    away = ["--ledger", "postgresql://nobody@127.0.0.1:9/ledger"]
    done = subprocess.run([*words, *away, "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "spooled, not shipped" in done.stderr
    report = ["cost", "report", "w", "--json", "--output-dir", str(tmp_path)]
    document = json.loads(subprocess.run([str(PROGRAM), *report], check=True, capture_output=True).stdout)
    assert document["leased_ns"] > 0
