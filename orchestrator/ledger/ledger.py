"""The ledger's front door: what wiring and the command line use."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from orchestrator.ledger.accounts import Accounts, CountedLine
from orchestrator.ledger.archive import Archive, Close, MemoryArchive, verify
from orchestrator.ledger.booking import STANDARD_POLICY, BookedLease, BookingPolicy, book
from orchestrator.ledger.budgets import Budgets, BudgetStore
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.completion import Completion, completion
from orchestrator.ledger.corrections import Rejection, effective
from orchestrator.ledger.entries import lease_entries, stated_entries
from orchestrator.ledger.errors import LedgerError, UnknownRunError
from orchestrator.ledger.events import Correction, Event, UsageStated, parse_event
from orchestrator.ledger.journal import BadLine, Journal, MemoryJournal
from orchestrator.ledger.labels import Labels, labels_of
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.mart import Mart, default_folder
from orchestrator.ledger.memory_budgets import MemoryBudgets
from orchestrator.ledger.meter import RunMeter, Spent, spent_on
from orchestrator.ledger.money import AMOUNT_PLACES, rounded
from orchestrator.ledger.prices import PriceBook, PriceTable
from orchestrator.ledger.pricing import Pricer
from orchestrator.ledger.ray_events import Recording
from orchestrator.ledger.ray_findings import RayReconciliation
from orchestrator.ledger.ray_reconcile import leases_to_compare, reconcile_ray
from orchestrator.ledger.report_by import Report, field_of, report_by, require_dimensions
from orchestrator.ledger.run_report import RunReport, run_report
from orchestrator.ledger.sharing import share_idle
from orchestrator.ledger.spool import ship
from orchestrator.ledger.units import UnitCost, token_units, unit_costs
from orchestrator.ledger.variance import SCOPE_FIELDS, Variance, variance
from orchestrator.ledger.waste import WasteReport, waste_report

AnyPriceBook = PriceBook | Mapping[str, Any] | Path


class Ledger:
    """A journal, an archive and a policy.

    Safe to use beside other processes on the same store; one object is used by one thread.
    """

    def __init__(
        self,
        journal: Journal,
        archive: Archive,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
        only_book: PriceBook | None = None,
        mart: Mart | None = None,
        budgets: BudgetStore | None = None,
    ) -> None:
        self._journal, self._archive, self._policy, self._now_ns = journal, archive, policy, now_ns
        self._mart = mart
        self._budgets = MemoryBudgets() if budgets is None else budgets
        self._accounts = Accounts(journal, archive, policy, mart)
        self._meters: dict[str, tuple[RunMeter, int]] = {}
        self._only_book = only_book
        self._pricer_now: Pricer | None = None

    @classmethod
    def open(
        cls,
        url: str,
        price_book: AnyPriceBook | None = None,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
        mart_folder: Path | None = None,
        read_only: bool = False,
    ) -> Ledger:
        """Open the ledger at `url` (`sqlite:///path`, `postgresql://...`), creating its tables if it is new.

        A price book that the ledger has not seen before is adopted. `mart_folder`: where the mart of a large
        ledger is kept (default: beside a SQLite file, else in the user's cache directory). `read_only` reads
        a ledger that cannot be written, such as one on a read-only mount or a full disk; operations that
        write then raise LedgerReadOnlyError. Raises LedgerError.
        """
        from orchestrator.ledger.sql.archive import SqlArchive
        from orchestrator.ledger.sql.budgets import SqlBudgets
        from orchestrator.ledger.sql.engine import open_engine
        from orchestrator.ledger.sql.journal import SqlJournal
        from orchestrator.ledger.sql.migrations import require_head

        read = None if price_book is None else _price_book(price_book)
        engine = open_engine(url, read_only)
        require_head(engine)
        journal = SqlJournal(engine, now_ns)
        mart = Mart(mart_folder or default_folder(url), journal, policy, url)
        ledger = cls(
            journal, SqlArchive(engine, now_ns), policy, now_ns, None, mart, SqlBudgets(engine, now_ns)
        )
        if read is not None:
            ledger.offer(read)
        return ledger

    @classmethod
    def in_memory(
        cls,
        price_book: AnyPriceBook,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> Ledger:
        """A ledger that forgets: for simulations and tests."""
        ledger = cls(MemoryJournal(now_ns), MemoryArchive(now_ns), policy, now_ns)
        ledger.offer(_price_book(price_book))
        return ledger

    def priced_with(self, price_book: PriceBook) -> Ledger:
        """The same ledger, read with one price book instead of those adopted; closed months keep theirs."""
        return Ledger(
            self._journal, self._archive, self._policy, self._now_ns, price_book, self._mart, self._budgets
        )

    def price_books(self, as_of_ns: int | None = None) -> list[PriceBook]:
        """The price books adopted by `as_of_ns`, the newest first."""
        return [adopted.book for adopted in self._archive.price_books(as_of_ns)]

    def price_rows(self) -> list[dict[str, str | None]]:
        """Every price that reports use, as plain JSON: by book (newest first), SKU and time."""
        return [row for book in self._table(None).books for row in book.rows()]

    def offer(self, price_book: PriceBook) -> bool:
        """Adopt what a run brings along, if it has prices for something that no adopted book prices, and is
        in the ledger's currency. Returns whether anything was new.

        Nothing that is priced gets another price: that is for those who answer for the ledger, by `adopt`.
        """
        adopted = self.price_books()
        if not adopted:
            return self.adopt(price_book)
        new = price_book.without(frozenset(series for book in adopted for series in book.series()))
        if new is None or adopted[0].currency != new.currency:
            return False
        return self.adopt(new)

    def adopt(self, price_book: PriceBook) -> bool:
        """Make a price book the newest, unless the newest of its name is equal.

        Returns whether anything changed.
        """
        self._pricer_now = None
        return self._archive.adopt(price_book)

    def book(self, events: Sequence[Event | Mapping[str, Any]]) -> int:
        """Take events (or their JSON objects); returns how many were new.

        Raises MalformedEventError, and then none was taken.
        """
        parsed = [parse_event(event) if isinstance(event, Mapping) else event for event in events]
        return self._journal.append(parsed)

    def ship(self, directory: Path) -> int:
        """Take what is new in the `*.jsonl` files of a spool directory; returns how many events were new."""
        return ship(directory, self._journal)

    def report(self, name: str, as_of_ns: int | None = None, places: int = AMOUNT_PLACES) -> RunReport:
        """The report of the run, or of the runs of the pipeline, `name`, as known at `as_of_ns`: a moment as
        for `report_by`.

        Raises UnknownRunError, and LedgerError for a moment in the future.
        """
        known = None if as_of_ns is None else self.moment(as_of_ns)
        runs = self._runs(name, known)
        booked, stated, _ = self._booked(runs, known, self._now_ns() if known is None else known)
        entries = [*lease_entries(booked), *stated_entries(stated)]
        extent = sum(lease.ns for lease in booked) + sum(int(line.accelerator_ns or 0) for line in stated)
        return run_report(name, runs, entries, extent, self._pricer(as_of_ns), places)

    def report_by(
        self,
        by: Sequence[str],
        first_day: int | None = None,
        end_day: int | None = None,
        as_of_ns: int | None = None,
        places: int = AMOUNT_PLACES,
        name: str | None = None,
        idle: str = "keep",
    ) -> Report:
        """What counts on the days [first_day, end_day), by some of `lines.DIMENSIONS`, as known at
        `as_of_ns`.

        `idle`: who pays for idle and lost time (`sharing.METHODS`).
        The same question about a moment in the past gives the same answer for ever. `name` keeps only the
        lines of a run, or of a pipeline's runs. A moment of today that is still to come means now. Raises
        LedgerError for an unknown dimension, or a day in the future.
        """
        require_dimensions(by)
        keep = {field_of(dimension) for dimension in by} | ({"run_id"} if name else set())
        if idle != "keep":
            keep = set(LineKey._fields)
        if as_of_ns is None:
            counted = self._accounts.counted_now(self._now_ns(), keep)
        else:
            counted = self._accounts.counted(self.moment(as_of_ns), keep)
        counted = share_idle(counted, idle)
        if name is not None:
            runs = set(self._runs(name, as_of_ns))
            counted = [line for line in counted if line.key.run_id in runs]
        return report_by(counted, by, self._pricer(as_of_ns), first_day, end_day, places)

    def mart_parts(self) -> list[Path]:
        """Bring the mart up to date; its Parquet files, none for a ledger in memory."""
        return [] if self._mart is None else self._mart.parts()

    def close(self, month: str) -> Close:
        """Close a month. Raises LedgerStateError, UnknownPriceError, PriceBookError: `Accounts.close`."""
        return self._accounts.close(month, self._now_ns())

    def closes(self, as_of_ns: int | None = None) -> list[Close]:
        """The months closed by `as_of_ns`, in order."""
        return self._archive.closes(as_of_ns)

    def verify(self) -> int:
        """Check the hash chain of all postings; returns how many there are.

        Raises LedgerStateError at the first break.
        """
        closes = self._archive.closes()
        last = closes[-1].last_posting if closes else 0
        return verify(self._archive.postings(last), closes)

    def cost_so_far(self, run_id: str, as_of_ns: int | None = None) -> Decimal:
        """What the run's leases cost until now, in the price table's currency, to 6 decimals.

        Reads only what is new since it was asked last.
        """
        return rounded(self.spent_so_far(run_id, as_of_ns).amount, AMOUNT_PLACES)

    def spent_so_far(self, run_id: str, as_of_ns: int | None = None) -> Spent:
        """The money and the time of the run's leases until now, as `cost_so_far`."""
        as_of = self._now_ns() if as_of_ns is None else as_of_ns
        pricer = self._pricer(None)
        meter, seq = self._meters.get(run_id) or (RunMeter(run_id, self._policy), 0)
        events: list[Event] = []
        for recorded in self._journal.events([run_id], after_seq=seq):
            events.append(recorded.event)
            seq = recorded.seq
        meter.take(events, pricer)
        self._meters[run_id] = (meter, seq)
        return self._spent(run_id, as_of, pricer) if meter.corrected else meter.spent(as_of, pricer)

    def cost_at(self, run_id: str, as_of_ns: int) -> Decimal:
        """What the run's leases had cost at a moment in the past. Reads all events of the run."""
        return rounded(self._spent(run_id, as_of_ns, self._pricer(None)).amount, AMOUNT_PLACES)

    def knows(self, name: str) -> bool:
        """Whether there is a run or a pipeline of that id."""
        return bool(self._journal.runs_of(name))

    def rejections(self, name: str) -> list[Rejection]:
        """The events of a run or pipeline that do not count, and why. Raises UnknownRunError."""
        return self._booked(self._runs(name), None, self._now_ns())[2]

    def runs_of(self, name: str, as_of_ns: int | None = None) -> list[str]:
        """The run, or the runs of the pipeline, `name`, as known at `as_of_ns`. Raises UnknownRunError."""
        return self._runs(name, as_of_ns)

    def events(self, runs: Collection[str] | None = None, as_of_ns: int | None = None) -> list[Event]:
        """The events that count, after corrections: all, or those about some runs."""
        known = self._journal.events(runs, known_by_ns=as_of_ns)
        return effective(recorded.event for recorded in known)[0]

    def counted(self, as_of_ns: int | None = None) -> Iterator[CountedLine]:
        """Every line that counts, as known at `as_of_ns`: what all reports add up."""
        if as_of_ns is None:
            return self._accounts.counted_now(self._now_ns())
        return self._accounts.counted(self.moment(as_of_ns))

    def reconcile_ray(
        self, recording: Recording, tolerance_ns: int, until_ns: int | None = None
    ) -> RayReconciliation:
        """The lives of actors as Ray tells them, beside the leases that name them or their placement groups.

        Two moments that are `tolerance_ns` apart or less agree; until `until_ns` (None: the last event) Ray
        would have told of a death.
        """
        head = self._journal.head()
        leases = leases_to_compare(recording, self._journal.news(0, head))
        corrections = (event for event in self._journal.unleased(0, head) if isinstance(event, Correction))
        events = [*corrections, *self._journal.of_leases(leases, head)]
        return reconcile_ray(events, recording, tolerance_ns, self._now_ns(), self._policy, until_ns)

    def moment(self, as_of_ns: int) -> int:
        """A moment that can be asked about: what is left of today means now, as in `--as-of <today>`.

        Raises LedgerError for a later one.
        """
        now = self._now_ns()
        if day_of(as_of_ns) > day_of(now):
            raise LedgerError("as-of", str(as_of_ns), f"{now} or earlier", "the future is not known")
        return min(as_of_ns, now)

    def pricer(self, as_of_ns: int | None = None) -> Pricer:
        """The prices that reports use, as known at `as_of_ns`."""
        return self._pricer(as_of_ns)

    def waste(self, name: str, places: int = AMOUNT_PLACES) -> WasteReport:
        """What a run, or a pipeline's runs, paid for without a result.

        Raises UnknownRunError, UnknownPriceError.
        """
        booked, labels = self._booked_with_labels(name)
        return waste_report(booked, labels, self._pricer(None), places)

    def unit_costs(
        self, name: str, counts: Mapping[str, Fraction], places: int = AMOUNT_PLACES
    ) -> tuple[UnitCost, ...]:
        """The cost of a run, or a pipeline's runs, over each of its tokens and of `counts` (a unit's name to
        how many).

        Raises UnknownRunError, UnknownPriceError.
        """
        booked, _ = self._booked_with_labels(name)
        amount = self._amount(booked)
        return unit_costs(amount, token_units(booked) | dict(counts), places)

    def completion(self, run_id: str, steps: int) -> Completion:
        """What a run will have cost after `steps` steps.

        Raises UnknownRunError, LedgerError before its second step.
        """
        booked, _ = self._booked_with_labels(run_id)
        return completion(run_id, booked, self._amount(booked), steps, self._pricer(None))

    def variances(self, places: int = 2) -> list[Variance]:
        """Each budget against what counts in its scope. Raises LedgerError for one in another currency."""
        budgets = [status.budget for status in self.budgets.statuses()]
        lines = list(self._accounts.counted_now(self._now_ns(), SCOPE_FIELDS)) if budgets else []
        return [variance(budget, lines, self._pricer(None), self._now_ns(), places) for budget in budgets]

    def _booked_with_labels(self, name: str) -> tuple[list[BookedLease], dict[str, Labels]]:
        """The leases with time for the runs of `name`, cut to that time, and those runs' labels."""
        runs = self._runs(name)
        events = self.events(runs)
        booked, _ = book(events, self._now_ns(), self._policy)
        kept = [
            replace(lease, slices=tuple(piece for piece in lease.slices if piece.run_id in runs))
            for lease in booked
        ]
        return [lease for lease in kept if lease.slices], labels_of(events)

    def _amount(self, booked: Sequence[BookedLease]) -> Fraction:
        pricer = self._pricer(None)
        return sum((pricer.amount(entry) for entry in lease_entries(booked)), Fraction(0))

    @property
    def budgets(self) -> Budgets:
        """The budgets: reserve, settle, void, expire."""
        return Budgets(self._budgets, self._now_ns)

    def bad_lines(self) -> list[BadLine]:
        """The lines that were no event, with file and line."""
        return self._journal.bad_lines()

    def _spent(self, run_id: str, as_of_ns: int, pricer: Pricer) -> Spent:
        booked, stated, _ = self._booked([run_id], None, as_of_ns)
        held = lease_entries(lease for lease in booked if lease.opened.run_id == run_id)
        return spent_on(held, pricer) + spent_on(stated_entries(stated), pricer)

    def _runs(self, name: str, as_of_ns: int | None = None) -> list[str]:
        runs = self._journal.runs_of(name, as_of_ns)
        if not runs:
            raise UnknownRunError(name)
        return runs

    def _booked(
        self, runs: Sequence[str], known_by_ns: int | None, as_of_ns: int
    ) -> tuple[list[BookedLease], list[UsageStated], list[Rejection]]:
        events = [recorded.event for recorded in self._journal.events(runs, known_by_ns=known_by_ns)]
        booked, rejected = book(events, as_of_ns, self._policy)
        stated = [event for event in effective(events)[0] if isinstance(event, UsageStated)]
        return booked, stated, rejected

    def _pricer(self, as_of_ns: int | None) -> Pricer:
        if as_of_ns is not None:
            return Pricer(self._table(as_of_ns))
        if self._pricer_now is None:
            self._pricer_now = Pricer(self._table(None))
        return self._pricer_now

    def _table(self, as_of_ns: int | None) -> PriceTable:
        if self._only_book is not None:
            return PriceTable([self._only_book])
        return PriceTable([adopted.book for adopted in self._archive.price_books(as_of_ns)])


def _price_book(source: AnyPriceBook) -> PriceBook:
    if isinstance(source, PriceBook):
        return source
    return PriceBook.load(source) if isinstance(source, Path) else PriceBook.parse(source)
