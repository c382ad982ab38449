"""Wrapping a command: its resources are leased from its start to its end, and its exit code is passed on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.ledger.booking import Ending, book
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import Event, LeaseOpened, PurposeSet, RunDeclared, event_from_json
from orchestrator.ledger.labels import Labels
from orchestrator.ledger.wrap import Held, held_by, run

LABELS = Labels("lab", "cc", "nlp", "r1", "p", "python", "sft", "final")
HELD = Held("gpu", "h100", 2, "n1")


@pytest.mark.parametrize(
    ("environment", "gpus", "cpus", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, None, None, ("gpu", "gpu", 2)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f, GPU-2e,"}, None, None, ("gpu", "gpu", 2)),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 1, None, ("gpu", "gpu", 1)),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, None, 4, ("cpu", "cpu-slot", 4)),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 0, 4, ("cpu", "cpu-slot", 4)),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, 3, ("cpu", "cpu-slot", 3)),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None, 3, ("cpu", "cpu-slot", 3)),
        ({}, None, 1, ("cpu", "cpu-slot", 1)),
    ],
)
def test_the_resources_of_a_command(
    environment: Mapping[str, str], gpus: int | None, cpus: int | None, expected: tuple[str, str, int]
) -> None:
    held = held_by(environment, gpus, cpus, "", "n1")
    assert (held.resource, held.sku, held.count) == expected


def test_a_command_holds_at_least_a_cpu() -> None:
    assert held_by({}, None, None, "m7g", "n1").count >= 1
    assert held_by({}, None, None, "m7g", "n1").sku == "m7g"
    with pytest.raises(LedgerError, match="--cpus"):
        held_by({}, None, 0, "", "n1")


def wrapped(folder: Path, code: str, seconds: float = 30.0) -> tuple[int, list[Event]]:
    """Return the exit code and the events of a Python program. The clock
    advances by a second at each call.
    """

    def ticks() -> Iterator[int]:
        now = 10**18
        while True:
            now += 10**9
            yield now

    clock = ticks()
    file = folder / "ledger" / "wrap.jsonl"
    ended = run([sys.executable, "-c", code], "w", LABELS, HELD, file, seconds, lambda: next(clock))
    return ended, [event_from_json(line) for line in file.read_text().splitlines()]


def test_a_command_is_leased_from_start_to_end(tmp_path: Path) -> None:
    code, events = wrapped(tmp_path, "")
    booked, rejected = book(events, 2 * 10**18)
    assert (code, rejected) == (0, [])
    assert [lease.ending for lease in booked] == [Ending.RELEASED] * 2
    assert [[piece.activity for piece in lease.slices] for lease in booked] == [["run"], ["run"]]
    assert all(sum(piece.ns for piece in lease.slices) == lease.ns > 0 for lease in booked)
    [declared] = [event for event in events if isinstance(event, RunDeclared)]
    assert (declared.team, declared.stage, declared.purpose, declared.job) == (
        "nlp",
        "sft",
        "final",
        "python",
    )
    assert {event.node for event in events if isinstance(event, LeaseOpened)} == {"n1"}
    assert not any(isinstance(event, PurposeSet) for event in events)


def test_a_command_that_fails_has_the_purpose_failed(tmp_path: Path) -> None:
    code, events = wrapped(tmp_path, "raise SystemExit(3)")
    assert code == 3
    assert [event.purpose for event in events if isinstance(event, PurposeSet)] == ["failed"]


def test_a_command_ended_by_signal_n_returns_128_plus_n(tmp_path: Path) -> None:
    code, events = wrapped(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert code == 137
    assert [event.purpose for event in events if isinstance(event, PurposeSet)] == ["failed"]


def test_a_long_command_emits_heartbeats(tmp_path: Path) -> None:
    """The command ends once it has seen several of them."""
    file = tmp_path / "ledger" / "wrap.jsonl"
    command = f"""
import pathlib, time
file = pathlib.Path({str(file)!r})
for _ in range(6000):
    if file.exists() and file.read_bytes().count(b"span_recorded") >= 8:
        break
    time.sleep(0.01)
"""
    _, events = wrapped(tmp_path, command, 0.02)
    booked, rejected = book(events, 2 * 10**18)
    assert rejected == []
    for lease in booked:
        assert len(lease.slices) > 2
        assert {piece.activity for piece in lease.slices} == {"run"}
        assert sum(piece.ns for piece in lease.slices) == lease.ns


def test_a_command_that_cannot_start_leases_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no-such-program"):
        run(["no-such-program"], "w", LABELS, HELD, tmp_path / "ledger" / "wrap.jsonl", 1.0, lambda: 0)
    assert list(tmp_path.iterdir()) == []


def test_a_command_whose_usage_cannot_be_recorded_is_killed(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(OSError, match="ledger"):
        run(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            *("w", LABELS, HELD, tmp_path / "ledger" / "wrap.jsonl", 1.0, lambda: 0),
        )
