import errno
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.training.usage import (
    Activity,
    CloseReason,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    MemorySink,
    PurposeSet,
    Role,
    RunDeclared,
    SpanRecorded,
    SpoolSink,
    UsageEvent,
    event_to_json,
    new_event_id,
)

EVENTS: list[UsageEvent] = [
    RunDeclared("e1", 1, "run", 1, "grpo", "final", "org", "cc", "team", "project", "pipeline", "stage"),
    LeaseOpened("e2", 2, "run/1/0.0", "run", 1, "gpu", "h100", "node", "group", 0),
    SpanRecorded("e3", "run/1/0.0", "rollout-0", Role.ROLLOUT, Activity.GENERATE, 3, 4, 7, 512),
    Heartbeat("e4", 5, "run/1/0.0"),
    LeaseClosed("e5", 6, "run/1/0.0", CloseReason.LOST),
    PurposeSet("e6", 7, "run", "failed"),
]


def type_of(event: UsageEvent) -> str:
    return event.type


@pytest.mark.parametrize("event", EVENTS, ids=type_of)
def test_an_event_is_one_flat_line(event: UsageEvent) -> None:
    line = event_to_json(event)
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed.pop("schema") == 1
    assert parsed.pop("type") == event.type
    assert parsed == {field.name: getattr(event, field.name) for field in fields(event)}
    assert all(isinstance(value, str | int) for value in parsed.values())


def test_a_span_as_json() -> None:
    assert event_to_json(EVENTS[2]) == (
        '{"schema":1,"type":"span_recorded","event_id":"e3","lease_id":"run/1/0.0","actor":"rollout-0",'
        '"role":"rollout","activity":"generate","start_ns":3,"end_ns":4,"step":7,"tokens":512}'
    )


def test_event_ids_differ() -> None:
    assert len({new_event_id() for _ in range(1000)}) == 1000


def test_the_memory_sink_keeps_events_in_order() -> None:
    sink = MemorySink()
    for event in EVENTS:
        sink.emit(event)
    assert sink.events == EVENTS


def test_a_spool_has_one_line_per_event_immediately(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "spool.jsonl"
    sink = SpoolSink(path)
    for count, event in enumerate(EVENTS, start=1):
        sink.emit(event)
        assert path.read_text().count("\n") == count
    sink.close()
    assert path.read_text() == "".join(event_to_json(event) + "\n" for event in EVENTS)


def test_a_spool_is_continued(tmp_path: Path) -> None:
    for event in EVENTS[:2]:
        sink = SpoolSink(tmp_path / "spool.jsonl")
        sink.emit(event)
        sink.close()
    assert len((tmp_path / "spool.jsonl").read_text().splitlines()) == 2


def test_a_partially_written_line_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partial line is removed, because it would corrupt the next event."""
    path = tmp_path / "spool.jsonl"
    sink = SpoolSink(path)
    sink.emit(EVENTS[0])
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
        with pytest.raises(OSError, match="spool") as caught:
            sink.emit(EVENTS[1])
    assert caught.value.errno == errno.ENOSPC
    sink.emit(EVENTS[2])
    sink.close()
    assert path.read_text() == event_to_json(EVENTS[0]) + "\n" + event_to_json(EVENTS[2]) + "\n"
