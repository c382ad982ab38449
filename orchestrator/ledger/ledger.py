"""The ledger's front door: what wiring and the command line use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from orchestrator.ledger.booking import (
    STANDARD_POLICY,
    BookedLease,
    BookingPolicy,
    Rejection,
    book,
    effective,
)
from orchestrator.ledger.entries import Entry, lease_entries, stated_entries
from orchestrator.ledger.errors import UnknownRunError
from orchestrator.ledger.events import Event, UsageStated, parse_event
from orchestrator.ledger.journal import BadLine, Journal
from orchestrator.ledger.meter import RunMeter
from orchestrator.ledger.money import AMOUNT_PLACES, rounded
from orchestrator.ledger.prices import PriceBook
from orchestrator.ledger.pricing import Pricer
from orchestrator.ledger.run_report import RunReport, run_report
from orchestrator.ledger.spool import ship


class Ledger:
    """A journal, a price book and a policy.

    Safe to use beside other processes on the same store; one object is used by one thread.
    """

    def __init__(
        self,
        journal: Journal,
        price_book: PriceBook,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._journal, self._policy, self._now_ns = journal, policy, now_ns
        self._pricer = Pricer(price_book)
        self._meters: dict[str, tuple[RunMeter, int]] = {}

    @classmethod
    def open(
        cls,
        url: str,
        price_book: PriceBook | Mapping[str, Any] | Path,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> Ledger:
        """The ledger at `url` (`sqlite:///path`, `postgresql://...`); its tables are made if it is new.

        Raises LedgerError.
        """
        from orchestrator.ledger.sql.engine import open_engine
        from orchestrator.ledger.sql.journal import SqlJournal
        from orchestrator.ledger.sql.schema import METADATA

        engine = open_engine(url)
        METADATA.create_all(engine)
        return cls(SqlJournal(engine, now_ns), _price_book(price_book), policy, now_ns)

    @property
    def price_book(self) -> PriceBook:
        """What it prices with."""
        return self._pricer.book

    def book(self, events: Sequence[Event | Mapping[str, Any]]) -> int:
        """Take events (or their JSON objects); returns how many were new.

        Raises MalformedEventError, and then none was taken.
        """
        return self._journal.append(
            [parse_event(event) if isinstance(event, Mapping) else event for event in events]
        )

    def ship(self, directory: Path) -> int:
        """Take what is new in the `*.jsonl` files of a spool directory; returns how many events were new."""
        return ship(directory, self._journal)

    def report(self, name: str, as_of_ns: int | None = None, places: int = AMOUNT_PLACES) -> RunReport:
        """The report of the run, or of the runs of the pipeline, `name`. Raises UnknownRunError."""
        runs = self._runs(name)
        booked, stated, _ = self._booked(runs, as_of_ns)
        entries = [*lease_entries(booked), *stated_entries(stated)]
        extent = sum(lease.ns for lease in booked) + sum(int(line.accelerator_ns or 0) for line in stated)
        return run_report(name, runs, entries, extent, self._pricer, places)

    def cost_so_far(self, run_id: str, as_of_ns: int | None = None) -> Decimal:
        """What the run's leases cost until now, in the price book's currency, to 6 decimals.

        Reads only what is new since it was asked last.
        """
        as_of = self._now_ns() if as_of_ns is None else as_of_ns
        meter, seq = self._meters.get(run_id) or (RunMeter(run_id, self._policy), 0)
        events: list[Event] = []
        for recorded in self._journal.events([run_id], after_seq=seq):
            events.append(recorded.event)
            seq = recorded.seq
        meter.take(events, self._pricer)
        self._meters[run_id] = (meter, seq)
        cost = self._full_cost(run_id, as_of) if meter.corrected else meter.cost(as_of, self._pricer)
        return rounded(cost, AMOUNT_PLACES)

    def rejections(self, name: str) -> list[Rejection]:
        """The events of a run or pipeline that do not count, and why. Raises UnknownRunError."""
        return self._booked(self._runs(name), None)[2]

    def bad_lines(self) -> list[BadLine]:
        """The lines that were no event, with file and line."""
        return self._journal.bad_lines()

    def _full_cost(self, run_id: str, as_of_ns: int) -> Fraction:
        booked, stated, _ = self._booked([run_id], as_of_ns)
        entries: list[Entry] = [*lease_entries(lease for lease in booked if lease.opened.run_id == run_id)]
        entries += stated_entries(stated)
        return sum((self._pricer.amount(entry) for entry in entries), Fraction(0))

    def _runs(self, name: str) -> list[str]:
        runs = self._journal.runs_of(name)
        if not runs:
            raise UnknownRunError("run", name, "a run or pipeline in the ledger", "is its spool shipped?")
        return runs

    def _booked(
        self, runs: Sequence[str], as_of_ns: int | None
    ) -> tuple[list[BookedLease], list[UsageStated], list[Rejection]]:
        events = [recorded.event for recorded in self._journal.events(runs)]
        as_of = self._now_ns() if as_of_ns is None else as_of_ns
        booked, rejected = book(events, as_of, self._policy)
        stated = [event for event in effective(events)[0] if isinstance(event, UsageStated)]
        return booked, stated, rejected


def _price_book(source: PriceBook | Mapping[str, Any] | Path) -> PriceBook:
    if isinstance(source, PriceBook):
        return source
    return PriceBook.load(source) if isinstance(source, Path) else PriceBook.parse(source)
