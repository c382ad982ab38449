"""The contract of the journal and the archive: in memory, on SQLite, on PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from orchestrator.clock import FakeClock
from orchestrator.ledger.accounts import Accounts, CountedLine
from orchestrator.ledger.archive import GENESIS, Close, chain, verify
from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, day_number, month_bounds
from orchestrator.ledger.errors import LedgerStateError
from orchestrator.ledger.events import (
    Correction,
    LeaseClosed,
    LeaseOpened,
    PurposeSet,
    RunDeclared,
    SpanRecorded,
    UsageStated,
)
from orchestrator.ledger.journal import BadLine, Cursor, Recorded
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.prices import PriceBook
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.migrations import HEAD, downgrade, require_head, upgrade, version_of
from orchestrator.ledger.sql.schema import APPEND_ONLY, METADATA
from tests.contracts.ledger_stores import Stores, fresh_database, memory_stores, sql_stores

JANUARY = month_bounds("2026-01")[0] * DAY_NS
POLICY = BookingPolicy(grace_ns=15 * 60 * 10**9, skew_ns=10**9)


class HostClock(FakeClock):
    """A clock that can be set back."""

    def set_back(self, ns: int) -> None:
        self._now_ns -= ns


POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.slow)


@pytest.fixture
def clock() -> HostClock:
    return HostClock(JANUARY)


@pytest.fixture(params=["memory", "sqlite", POSTGRESQL])
def stores(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Stores]:
    yield from open_stores(request, clock, tmp_path)


@pytest.fixture(params=["sqlite", POSTGRESQL])
def sql(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Stores]:
    yield from open_stores(request, clock, tmp_path)


def open_stores(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Stores]:
    if request.param == "memory":
        yield memory_stores(clock.now_ns)
        return
    url = f"sqlite:///{tmp_path}/ledger.db" if request.param == "sqlite" else fresh_database()
    made = sql_stores(url, clock.now_ns)
    yield made
    assert made.engine is not None
    made.engine.dispose()


def declared(run: str = "r", pipeline: str = "p") -> RunDeclared:
    return RunDeclared(f"declared-{run}", 0, run, 1, "grpo", "debug", "o", "c", "t", "x", pipeline, "grpo")


def opened(lease: str, run: str = "r", at: int = 0) -> LeaseOpened:
    return LeaseOpened(f"open-{lease}", at, lease, run, 1, "gpu", "h100", "n", "pg", 0)


def closed(lease: str, at: int) -> LeaseClosed:
    return LeaseClosed(f"close-{lease}", at, lease, "released")


def span(lease: str, start: int, end: int, run: str = "", event_id: str = "") -> SpanRecorded:
    name = event_id or f"span-{lease}-{start}"
    return SpanRecorded(name, lease, "w", "rollout", "generate", start, end, 0, 0, run)


def ids(recorded: Iterable[Recorded]) -> list[str]:
    return [row.event.event_id for row in recorded]


def test_each_event_is_taken_once_in_order(stores: Stores):
    events = [declared(), opened("a"), span("a", 1, 2)]
    assert stores.journal.append([*events, events[0]]) == 3
    assert stores.journal.append([events[1], closed("a", 5)]) == 1
    recorded = list(stores.journal.events())
    assert [row.seq for row in recorded] == [1, 2, 3, 4]
    assert [row.event for row in recorded] == [*events, closed("a", 5)]


def test_the_same_id_with_other_content_is_quarantined_and_the_first_counts(stores: Stores):
    stores.journal.append([span("a", 1, 2, event_id="s")])
    assert stores.journal.append([span("a", 1, 9, event_id="s"), span("a", 3, 4)]) == 1
    assert [line.source for line in stores.journal.bad_lines()] == ["event s"]
    (first, _) = stores.journal.events()
    assert first.event == span("a", 1, 2, event_id="s")


def test_bad_lines_and_the_spool_position_are_stored_with_the_events(stores: Stores):
    bad = BadLine("a.jsonl:3", "not JSON", "{oops")
    for offset in (100, 250):
        stores.journal.append([opened("a")], [bad], Cursor("/spool/a.jsonl", offset, 3))
    assert stores.journal.bad_lines() == [bad]
    assert stores.journal.cursor("/spool/a.jsonl") == Cursor("/spool/a.jsonl", 250, 3)
    assert stores.journal.cursor("/spool/b.jsonl") == Cursor("/spool/b.jsonl", 0, 0)


def test_arrival_times_never_decrease(stores: Stores, clock: HostClock):
    stores.journal.append([opened("a")])
    clock.set_back(1000)
    stores.journal.append([opened("b")])
    assert [row.recorded_ns for row in stores.journal.events()] == [JANUARY, JANUARY]


def test_events_can_be_read_as_of_a_time_and_from_a_position(stores: Stores, clock: HostClock):
    stores.journal.append([opened("a")])
    clock.advance(10)
    stores.journal.append([opened("b")])
    assert ids(stores.journal.events(known_by_ns=JANUARY)) == ["open-a"]
    assert ids(stores.journal.events(after_seq=1)) == ["open-b"]


def test_the_events_of_a_run_include_those_of_leases_that_served_it(stores: Stores):
    stores.journal.append(
        [
            declared("r"),
            declared("other", pipeline="q"),
            PurposeSet("purpose", 1, "r", "final"),
            opened("a", "r"),
            opened("b", "other"),
            opened("judge", "judge-run"),
            span("judge", 1, 2, run="r"),
            span("judge", 2, 3, run="other"),
            span("b", 1, 2),
            closed("a", 9),
            Correction("c", 1, "nothing", "?"),
        ]
    )
    assert ids(stores.journal.events(["r"])) == [
        "declared-r",
        "purpose",
        "open-a",
        "open-judge",
        "span-judge-1",
        "span-judge-2",
        "close-a",
        "c",
    ]


def test_a_name_is_a_run_or_the_runs_of_a_pipeline(stores: Stores):
    stores.journal.append([declared("r1"), declared("r2"), declared("r3", "q"), opened("a", "undeclared")])
    assert stores.journal.runs_of("p") == ["r1", "r2"]
    assert stores.journal.runs_of("r3") == ["r3"]
    assert stores.journal.runs_of("undeclared") == ["undeclared"]
    assert stores.journal.runs_of("nobody") == []


def test_a_pipeline_has_the_runs_known_at_a_time(stores: Stores, clock: HostClock):
    stores.journal.append([declared("r1"), opened("a", "undeclared")])
    then = clock.now_ns()
    clock.advance(1)
    stores.journal.append([declared("r2"), opened("b", "later")])
    assert stores.journal.runs_of("p", then) == ["r1"] and stores.journal.runs_of("p") == ["r1", "r2"]
    assert stores.journal.runs_of("undeclared", then) == ["undeclared"]
    assert stores.journal.runs_of("later", then) == stores.journal.runs_of("r2", then) == []


def price_book(amount: str = "2", name: str = "test") -> PriceBook:
    price = {
        "sku": "h100",
        "resource": "gpu",
        "region": "x",
        "commitment": "on_demand",
        "amount": amount,
        "currency": "USD",
        "from": "2020-01-01",
        "to": None,
        "source": "a test",
        "retrieved": "2026-01-01",
    }
    return PriceBook.parse(
        {"name": name, "currency": "USD", "region": "x", "commitment": "on_demand", "prices": [price]}
    )


def test_price_books_are_stored_newest_first_without_duplicates(stores: Stores, clock: HostClock):
    assert stores.archive.adopt(price_book("2")) and not stores.archive.adopt(price_book("2"))
    clock.advance(5)
    assert stores.archive.adopt(price_book("3")) and stores.archive.adopt(price_book("2"))
    assert [adopted.number for adopted in stores.archive.price_books()] == [3, 2, 1]
    assert [adopted.number for adopted in stores.archive.price_books(known_by_ns=JANUARY)] == [1]
    day = day_number(date(2026, 1, 5))
    assert [known.book.price("h100", day).per_hour for known in stores.archive.price_books()] == [2, 3, 2]


def line_key(day: int, lease: str = "a", price: str = "2") -> LineKey:
    labels = ("o", "c", "t", "x", "p", "grpo", "grpo", "debug")
    return LineKey(
        day, "r", 1, lease, "n", "gpu", "h100", "", "", "rollout", "generate", *labels, price, "USD"
    )


def test_postings_keep_sums_past_64_bits_and_their_chain(stores: Stores):
    day = month_bounds("2026-01")[0]
    quantities = [40_000_000 * HOUR_NS, -(2**70), 1]
    postings = list(
        chain([(line_key(day, f"l{i}"), ns) for i, ns in enumerate(quantities)], "2026-01", 0, GENESIS)
    )
    close = Close("2026-01", JANUARY, 7, 1, 3, 3, postings[-1].hash)
    stores.archive.post(close, postings)
    assert list(stores.archive.postings(3)) == postings
    assert [row.ns for row in stores.archive.postings(3, leases=["l0", "l2"])] == [quantities[0], 1]
    assert verify(stores.archive.postings(3), stores.archive.closes()) == 3
    with pytest.raises(LedgerStateError, match="already closed"):
        stores.archive.post(close, postings)
    assert stores.archive.closes() == [close] and list(stores.archive.postings(99)) == postings


def test_a_month_closes_and_late_events_become_adjustments(stores: Stores, clock: HostClock):
    accounts = Accounts(stores.journal, stores.archive, POLICY)
    stores.archive.adopt(price_book())
    late = span("a", JANUARY + HOUR_NS, JANUARY + 2 * HOUR_NS)
    stores.journal.append([declared(), opened("a", at=JANUARY), closed("a", JANUARY + 10 * HOUR_NS)])
    clock.advance(32 * DAY_NS)
    close = accounts.close("2026-01", clock.now_ns())
    before = sorted(accounts.counted(clock.now_ns()))
    assert [(line.posted, line.key.activity, line.ns) for line in before] == [
        ("2026-01", "idle", 10 * HOUR_NS)
    ]
    then = clock.now_ns()
    clock.advance(1)
    stores.journal.append([late])
    changes = [line for line in accounts.counted(clock.now_ns()) if line.kind == "adjustment"]
    assert sorted((line.posted, line.key.month, line.key.activity, line.ns) for line in changes) == [
        ("2026-02", "2026-01", "generate", HOUR_NS),
        ("2026-02", "2026-01", "idle", -HOUR_NS),
    ]
    assert sorted(accounts.counted(then)) == before
    clock.advance(31 * DAY_NS)
    accounts.close("2026-02", clock.now_ns())
    assert sorted(accounts.counted(clock.now_ns())) == sorted([*before, *changes_as_posted(changes)])
    closes = stores.archive.closes()
    assert closes[0] == close
    assert verify(stores.archive.postings(closes[-1].last_posting), closes) == 3


def changes_as_posted(changes: list[CountedLine]) -> list[CountedLine]:
    return [line._replace(key=line.key._replace(unit_price="2", currency="USD")) for line in changes]


def test_forty_million_accelerator_hours_are_exact_to_the_nanosecond_and_the_cent(
    stores: Stores, clock: HostClock
):
    """1.44e20 ns, sixteen times the range of 64 bits, in two thousand lines with odd
    ends; open, closed and adjusted.
    """
    lines = 2000
    quantity = 40_000_000 * HOUR_NS // lines + 1
    stated = [
        UsageStated(f"s{number}", "r", "gpu", "h100", str(quantity), JANUARY, JANUARY, "", "", "a table")
        for number in range(lines)
    ]
    ledger = Ledger(stores.journal, stores.archive, POLICY, clock.now_ns)
    ledger.prices.adopt(price_book("2.01"))
    ledger.book([declared(), *stated])
    total = lines * quantity
    assert total > 15 * 2**63
    exact = Fraction(total, HOUR_NS) * Fraction("2.01")
    for closing in (False, True):
        if closing:
            clock.advance(32 * DAY_NS)
            assert ledger.close("2026-01").postings == lines
        report = ledger.report_by(["team", "posted"], places=2)
        assert (report.ns, report.rows[0].ns) == (total, total)
        assert abs(Fraction(report.amount) - exact) <= Fraction(1, 200)
        assert str(report.amount) == "80400000.00"
    ledger.book([replace(stated[0], event_id="late", accelerator_ns=str(2**70))])
    assert ledger.report_by(["team"], places=2).ns == total + 2**70


def test_the_database_rejects_changes_and_deletions(sql: Stores):
    assert sql.engine is not None
    sql.journal.append([declared()], [BadLine("a:1", "bad", "x")])
    sql.archive.adopt(price_book())
    postings = list(chain([(line_key(month_bounds("2026-01")[0]), 5)], "2026-01", 0, GENESIS))
    sql.archive.post(Close("2026-01", JANUARY, 1, 1, 1, 1, postings[-1].hash), postings)
    with sql.engine.connect().execution_options(ledger_write=True) as connection, connection.begin():
        connection.execute(text("INSERT INTO budgets VALUES (1, 'b', '{}', 0, 1, 1, 'USD', '[]', 0)"))
        connection.execute(text("INSERT INTO transfers VALUES (1, 'b', 'reserve', 'x', 'r', 1, 0, 0, 1, 0)"))
    statements = [f"DELETE FROM {table}" for table in APPEND_ONLY]
    for table in APPEND_ONLY:
        column = METADATA.tables[table].columns.keys()[-1]
        statements.append(f"UPDATE {table} SET {column} = {column}")
    if sql.engine.dialect.name == "postgresql":
        statements += [f"TRUNCATE {table}" for table in APPEND_ONLY]
    for statement in statements:
        with (
            pytest.raises(DBAPIError, match="append-only"),
            sql.engine.connect() as connection,
            connection.begin(),
        ):
            connection.execute(text(statement))


def test_migrations_upgrade_and_downgrade_and_create_the_declared_tables(sql: Stores):
    assert sql.engine is not None
    assert version_of(sql.engine) == HEAD
    with sql.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    for revision, gone in [("0002", "budgets"), ("0001", "postings"), ("base", "events")]:
        downgrade(sql.engine, revision)
        assert gone not in inspect(sql.engine).get_table_names()
    assert set(inspect(sql.engine).get_table_names()) == {"alembic_version"}
    upgrade(sql.engine)
    assert sql.journal.append([declared()]) == 1


def test_a_store_that_is_newer_than_this_program_is_refused(sql: Stores):
    assert sql.engine is not None
    with sql.engine.connect().execution_options(ledger_write=True) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerStateError, match="Upgrade this program"):
        require_head(sql.engine)


def test_two_processes_that_open_a_new_store_create_it_once(tmp_path: Path):
    engines = [open_engine(f"sqlite:///{tmp_path}/new.db") for _ in range(4)]
    threads = [threading.Thread(target=require_head, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {version_of(engine) for engine in engines} == {HEAD}
    for engine in engines:
        engine.dispose()


def test_opening_a_new_store_waits_for_another_writer(tmp_path: Path):
    """SQLite alone would fail, because the file cannot get a write-ahead log meanwhile."""
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.1, other.close)
    done.start()
    engine = open_engine(f"sqlite:///{tmp_path}/new.db")
    require_head(engine)
    assert version_of(engine) == HEAD
    done.join()
    engine.dispose()
