"""A report about month Y as known on day X has the same bytes today as then, in every format that is printed
or written, whatever became known since.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger import mart as marts
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, month_bounds, parse_moment
from orchestrator.ledger.events import (
    Correction,
    Event,
    LeaseClosed,
    LeaseOpened,
    PurposeSet,
    RunDeclared,
    SpanRecorded,
    UsageStated,
)
from orchestrator.ledger.exports.sheet import report_sheet, run_sheet
from orchestrator.ledger.exports.write import write_sheet
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook

pytestmark = pytest.mark.slow

JANUARY, FEBRUARY, MARCH = (month_bounds(month)[0] * DAY_NS for month in ("2026-01", "2026-02", "2026-03"))
THEN = "2026-02-20"
THE_MOMENT = parse_moment(THEN)
SUFFIXES = ("csv", "html", "xlsx", "parquet")
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("report", "--by", "team,role,activity", "--from", "2026-01", "--to", "2026-02"),
    ("report", "--by", "run,kind,posted,purpose"),
    ("report", "--by", "lease", "--idle", "proportional"),
    ("report", "pipe", "--by", "run"),
    ("report", "pipe"),
    ("report", "r1"),
    ("headline", "pipe"),
)


class Books:
    """A ledger in a file with a clock that can be set, and the commands that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, JANUARY
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.ledger = Ledger.open(self.url, now_ns=lambda: self.now)

    def know(self, at_ns: int, *events: Event) -> None:
        self.now = at_ns
        self.ledger.book(events)

    def price(self, at_ns: int, amount: str) -> None:
        self.now = at_ns
        price: dict[str, Any] = {
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
        defaults = {"name": "t", "currency": "USD", "region": "x", "commitment": "on_demand"}
        self.ledger.prices.adopt(PriceBook.parse({**defaults, "prices": [price]}))

    def ask(self, words: Sequence[str], capfdbinary: pytest.CaptureFixture[bytes]) -> bytes:
        """The output of a command."""
        where = ("--ledger", self.url, "--output-dir", str(self.folder / "runs"))
        assert run_command_line(["cost", *words, *where]) == 0
        return capfdbinary.readouterr().out

    def answers(self, capfdbinary: pytest.CaptureFixture[bytes]) -> dict[str, bytes]:
        """Every question in every format."""
        found: dict[str, bytes] = {}
        for question in QUESTIONS:
            words = (*question, "--as-of", THEN)
            found[f"{question} table"] = self.ask(words, capfdbinary)
            found[f"{question} json"] = self.ask((*words, "--json"), capfdbinary)
            for suffix in SUFFIXES if question[0] == "report" else ():
                file = self.folder / f"costs.{suffix}"
                self.ask((*words, "--output", str(file)), capfdbinary)
                found[f"{question} {suffix}"] = file.read_bytes()
        for suffix in ("csv", "parquet"):
            file = self.folder / f"focus.{suffix}"
            self.ask(("export", "focus", "--as-of", THEN, "--out", str(file)), capfdbinary)
            found[f"focus {suffix}"] = file.read_bytes()
        return found


def run_declared(run: str, team: str, pipeline: str, at_ns: int, event_id: str) -> RunDeclared:
    return RunDeclared(event_id, at_ns, run, 1, "grpo", "final", "lab", "cc", team, "x", pipeline, run)


def lease(run: str, start_ns: int, hours: int, reason: str = "released") -> list[Event]:
    name = f"{run}/{start_ns}"
    opened = LeaseOpened(f"o-{name}", start_ns, name, run, 1, "gpu", "h100", "n1", "pg", 0)
    busy = SpanRecorded(
        f"s-{name}", name, "w", "rollout", "generate", start_ns, start_ns + HOUR_NS * hours // 3, 1, 7
    )
    return [opened, busy, LeaseClosed(f"c-{name}", start_ns + hours * HOUR_NS, name, reason)]


def known_then(books: Books) -> None:
    """Two months of two runs of a pipeline; January is closed."""
    declared = (
        run_declared("r1", "blue", "pipe", JANUARY, "d1"),
        run_declared("r2", "red", "pipe", JANUARY, "d2"),
    )
    books.price(JANUARY, "2.17")
    books.know(JANUARY + 1, *declared, *lease("r1", JANUARY, 50), *lease("r2", JANUARY + DAY_NS, 30))
    books.now = FEBRUARY + DAY_NS
    books.ledger.close("2026-01")
    books.know(
        FEBRUARY + 2 * DAY_NS, *lease("r1", FEBRUARY, 7), *lease("r2", JANUARY + 5 * DAY_NS, 11, "lost")
    )
    unfinished = LeaseOpened("o-open", FEBRUARY + 9 * DAY_NS, "open", "r1", 1, "gpu", "h100", "n2", "pg", 0)
    books.know(FEBRUARY + 10 * DAY_NS, unfinished, *lease("r4", FEBRUARY, 3))


def known_later(books: Books) -> None:
    """Late leases, a correction, other labels and purposes, runs that turn out to belong to the pipeline,
    another price, statements, and the close of February.
    """
    at_ns = FEBRUARY + 21 * DAY_NS
    books.know(
        at_ns,
        *lease("r1", JANUARY + 9 * DAY_NS, 100),
        *lease("r3", JANUARY + 9 * DAY_NS, 9),
        run_declared("r3", "blue", "pipe", JANUARY, "d3"),
        run_declared("r4", "blue", "pipe", JANUARY, "d5"),
        run_declared("r1", "green", "pipe", at_ns, "d4"),
        PurposeSet("p", at_ns, "r2", "failed"),
        Correction("x", at_ns, f"s-r2/{JANUARY + DAY_NS}", "never happened"),
        LeaseClosed("c-open", FEBRUARY + 12 * DAY_NS, "open", "released"),
        UsageStated("u", "r2", "gpu", "h100", "3600", JANUARY, JANUARY, "9", "USD", "a paper"),
    )
    books.price(at_ns + 1, "9.99")
    books.now = MARCH + DAY_NS
    books.ledger.close("2026-02")


@pytest.mark.parametrize("with_mart", [False, True])
def test_reports_as_of_a_past_time_keep_their_bytes(
    with_mart: bool,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if with_mart:
        monkeypatch.setattr(marts.Mart.__init__, "__defaults__", ("", 0))
    books = Books(tmp_path)
    known_then(books)
    then = books.answers(capfdbinary)
    known_later(books)
    now = books.answers(capfdbinary)
    assert {name for name in then if then[name] != now[name]} == set()
    assert all(then.values())
    for question in QUESTIONS:
        assert books.ask((*question, "--json"), capfdbinary) != then[f"{question} json"], question


def test_reports_from_before_the_first_price_keep_their_bytes(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    books = Books(tmp_path)
    books.know(JANUARY + 1, run_declared("r1", "blue", "pipe", JANUARY, "d1"), *lease("r1", JANUARY, 50))
    words = ("report", "--by", "team,sku", "--as-of", THEN)
    then = books.ask(words, capfdbinary)
    books.price(MARCH, "2.17")
    assert books.ask(words, capfdbinary) == then
    assert books.ask(words[:3], capfdbinary) != then


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_report_as_of_a_time_equals_the_one_written_at_that_time(suffix: str, tmp_path: Path) -> None:
    """Compares --as-of not only with --as-of, but with the file of a user
    who asked on that day without it.
    """
    books, file = Books(tmp_path), tmp_path / f"costs.{suffix}"

    def written(as_of_ns: int | None) -> list[bytes]:
        by = books.ledger.report_by(["team", "role", "activity"], as_of_ns=as_of_ns)
        found: list[bytes] = []
        for sheet in (report_sheet(by, "Costs", ""), run_sheet(books.ledger.report("pipe", as_of_ns))):
            write_sheet(sheet, file)
            found.append(file.read_bytes())
        return found

    known_then(books)
    books.now = THE_MOMENT
    then = written(None)
    known_later(books)
    assert written(THE_MOMENT) == then != written(None)
