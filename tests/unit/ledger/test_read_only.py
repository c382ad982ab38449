"""A ledger that cannot be written (a full disk, a read-only mount) can still be read."""

from __future__ import annotations

import gc
import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.ledger.booking import STANDARD_POLICY
from orchestrator.ledger.errors import LedgerError, LedgerReadOnlyError, LedgerStateError
from orchestrator.ledger.events import Heartbeat, LeaseClosed, LeaseOpened, RunDeclared
from orchestrator.ledger.journal import MemoryJournal
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.mart import Mart
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.migrations import HEAD, downgrade

HOUR = 3_600_000_000_000
START = 1_790_000_000_000_000_000
LAPTOP = Path(__file__).parents[3] / "conf" / "price_book" / "laptop.yaml"
EVENTS = (
    RunDeclared("d", START, "r", 1, "grpo", "final", "", "", "blue", "", "", ""),
    LeaseOpened("o", START, "l", "r", 1, "cpu", "cpu-slot", "n", "", 0),
    LeaseClosed("c", START + HOUR, "l", "released"),
)


@contextmanager
def full_disk() -> Generator[None]:
    """Prevents all files of this process from growing, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'ledger #1.db'}"
    Ledger.open(url, LAPTOP, now_ns=lambda: START + HOUR).book(EVENTS)
    gc.collect()  # closes the connection, and SQLite then merges its write-ahead log into the file
    return url


def hours(ledger: Ledger, as_of_ns: int | None = None) -> dict[str, int]:
    report = ledger.report_by(["team"], as_of_ns=as_of_ns)
    return {str(row.values[0]): row.ns // HOUR for row in report.rows}


@pytest.mark.slow
def test_a_ledger_on_a_full_disk_is_read_without_writing(url: str, tmp_path: Path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".db"}
    with full_disk():
        with pytest.raises(LedgerReadOnlyError):
            Ledger.open(url)
        ledger = Ledger.open(url, read_only=True)
        assert hours(ledger) == {"blue": 1}
        assert hours(ledger, START + HOUR) == {"blue": 1}
        assert ledger.verify() == 0
        with pytest.raises(LedgerReadOnlyError):
            ledger.book([Heartbeat("h", START, "l")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".db"} == before
    assert Ledger.open(url).book([Heartbeat("h", START, "l")]) == 1


def test_an_old_ledger_that_cannot_be_upgraded_is_reported(url: str):
    engine = open_engine(url)
    downgrade(engine, "0002")
    engine.dispose()
    with (
        full_disk(),
        pytest.raises(LedgerStateError, match=f"schema version 0002, this program reads {HEAD}"),
    ):
        Ledger.open(url, read_only=True)
    assert hours(Ledger.open(url)) == {"blue": 1}


@pytest.mark.slow
def test_the_write_ahead_log_is_read_too(url: str):
    writer = Ledger.open(url)
    writer.book([Heartbeat("h", START, "l")])
    with full_disk():
        assert hours(Ledger.open(url, read_only=True)) == {"blue": 1}
    assert hours(writer) == {"blue": 1}


def test_without_a_writable_mart_reports_come_from_the_journal(tmp_path: Path):
    journal = MemoryJournal(lambda: START + HOUR)
    journal.append(EVENTS)
    mart = Mart(tmp_path / "mart", journal, STANDARD_POLICY, worthwhile_events=1)
    with full_disk():
        assert mart.lines(START + HOUR, ["team"]) is None
    found = mart.lines(START + HOUR, ["team"])
    assert found is not None
    assert sum(found[1].values()) == HOUR


def test_a_folder_that_cannot_be_created_is_reported_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerReadOnlyError, match="Cannot create"):
        Ledger.open(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3c@ret@db/ledger", "postgresql://ann:s3c@re/t@db:x/ledger"]
)
def test_no_part_of_a_password_with_an_unquoted_at_sign_is_shown(url: str):
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url)
    assert "s3c" not in str(caught.value)
    assert "ret" not in str(caught.value)
