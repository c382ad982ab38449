"""Ships spool files to the journal: complete lines, once each; malformed lines with their file and number."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger.events import Event, SpanLine
from orchestrator.ledger.journal import BadLine, Cursor, MemoryJournal
from orchestrator.ledger.spool import ship
from orchestrator.training.usage import Heartbeat, SpoolSink, event_to_json


def beat(number: int) -> str:
    return event_to_json(Heartbeat(f"b{number}", number, "lease")) + "\n"


def journal() -> MemoryJournal:
    return MemoryJournal(lambda: 1)


def ids(made: MemoryJournal) -> list[str]:
    return [row.event.event_id for row in made.events()]


def test_a_spool_is_shipped_once_and_in_order(tmp_path: Path):
    made, sink = journal(), SpoolSink(tmp_path / "a.jsonl")
    for number in range(3):
        sink.emit(Heartbeat(f"b{number}", number, "lease"))
    assert ship(tmp_path, made) == 3
    assert ship(tmp_path, made) == 0
    sink.emit(Heartbeat("b3", 3, "lease"))
    sink.close()
    assert ship(tmp_path, made) == 1
    assert ids(made) == ["b0", "b1", "b2", "b3"]


def test_a_line_that_is_still_being_written_waits(tmp_path: Path):
    made, path = journal(), tmp_path / "a.jsonl"
    path.write_text(beat(0) + beat(1)[:-5])
    assert ship(tmp_path, made) == 1
    path.write_text(beat(0) + beat(1))
    assert ship(tmp_path, made) == 1
    assert made.bad_lines() == []


class FinishingJournal(MemoryJournal):
    """While it takes a batch, the actor completes the line that it was writing, and writes another."""

    def __init__(self, path: Path, rest: str) -> None:
        super().__init__(lambda: 1)
        self._path, self._rest = path, rest

    def append(
        self,
        events: Sequence[Event | SpanLine],
        bad_lines: Sequence[BadLine] = (),
        cursor: Cursor | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        with self._path.open("a") as file:
            file.write(self._rest)
        self._rest = ""
        return super().append(events, bad_lines, cursor, texts)


def test_a_line_completed_during_shipping_is_not_lost(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(beat(0) + beat(1)[:9])
    made = FinishingJournal(path, beat(1)[9:] + beat(2))
    assert ship(tmp_path, made) + ship(tmp_path, made) == 3
    assert ids(made) == ["b0", "b1", "b2"]
    assert made.bad_lines() == []


def test_a_malformed_line_is_quarantined_and_the_others_count(tmp_path: Path):
    made, path = journal(), tmp_path / "a.jsonl"
    path.write_bytes(beat(0).encode() + b"{oops\n" + beat(1).encode() + b"\xff\xfe\x00\n\n")
    assert ship(tmp_path, made) == 2
    with path.open("a") as file:
        file.write("[]\n" + beat(2))
    assert ship(tmp_path, made) == 1
    assert ids(made) == ["b0", "b1", "b2"]
    assert [line.source for line in made.bad_lines()] == [f"{path}:{number}" for number in (2, 4, 5, 6)]
    assert "\0" not in made.bad_lines()[1].text


def test_the_same_events_from_two_places_count_once(tmp_path: Path):
    made = journal()
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(beat(0) + beat(1))
    assert ship(tmp_path, made) == 2
    assert ids(made) == ["b0", "b1"]
    assert ship(tmp_path / "nowhere", made) == 0


def test_a_moved_spool_does_not_count_twice(tmp_path: Path):
    made, path = journal(), tmp_path / "a.jsonl"
    path.write_text(beat(0))
    ship(tmp_path, made)
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "a.jsonl")
    assert ship(tmp_path / "moved", made) == 0
    assert made.bad_lines() == []
