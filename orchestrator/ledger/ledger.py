"""The ledger's entry point, used by the launcher and the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from orchestrator.ledger.accounts import Accounts, CountedLine
from orchestrator.ledger.adopted_prices import AdoptedPrices
from orchestrator.ledger.archive import Archive, Close, MemoryArchive, verify
from orchestrator.ledger.booking import STANDARD_POLICY, BookedLease, BookingPolicy, book
from orchestrator.ledger.budgets import Budgets, BudgetStore
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.completion import Completion, completion
from orchestrator.ledger.corrections import Rejection, apply_corrections
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
from orchestrator.ledger.prices import PriceBook
from orchestrator.ledger.pricing import Pricer
from orchestrator.ledger.ray_events import Recording
from orchestrator.ledger.ray_findings import RayReconciliation
from orchestrator.ledger.ray_holders import leases_to_compare
from orchestrator.ledger.ray_reconcile import reconcile_ray
from orchestrator.ledger.report_by import Report, field_of, report_by, require_dimensions
from orchestrator.ledger.run_report import RunReport, run_report
from orchestrator.ledger.sharing import share_idle
from orchestrator.ledger.spool import ship
from orchestrator.ledger.units import UnitCost, token_units, unit_costs
from orchestrator.ledger.variance import SCOPE_FIELDS, Variance, variance
from orchestrator.ledger.waste import WasteReport, waste_report

AnyPriceBook = PriceBook | Mapping[str, Any] | Path


class Ledger:
    """A journal, an archive and a booking policy.

    Several processes may use the same store at once; one object must only be used by one thread.
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
        self.prices = AdoptedPrices(archive, only_book)

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
            ledger.prices.offer(read)
        return ledger

    @classmethod
    def in_memory(
        cls,
        price_book: AnyPriceBook,
        policy: BookingPolicy = STANDARD_POLICY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> Ledger:
        """A ledger that is not stored, for simulations and tests."""
        ledger = cls(MemoryJournal(now_ns), MemoryArchive(now_ns), policy, now_ns)
        ledger.prices.offer(_price_book(price_book))
        return ledger

    def priced_with(self, price_book: PriceBook) -> Ledger:
        """The same ledger, priced with one price book instead of the adopted ones. Closed months
        keep their prices.
        """
        return Ledger(
            self._journal, self._archive, self._policy, self._now_ns, price_book, self._mart, self._budgets
        )

    def book(self, events: Sequence[Event | Mapping[str, Any]]) -> int:
        """Store events (or their JSON objects). Returns the number of new ones.

        Raises MalformedEventError, in which case none is stored.
        """
        parsed = [parse_event(event) if isinstance(event, Mapping) else event for event in events]
        return self._journal.append(parsed)

    def ship(self, directory: Path) -> int:
        """Store the new events in the `*.jsonl` files of a spool directory. Returns their number."""
        return ship(directory, self._journal)

    def report(self, name: str, as_of_ns: int | None = None, places: int = AMOUNT_PLACES) -> RunReport:
        """The report of the run `name`, or of the runs of the pipeline `name`, as known at `as_of_ns` (as
        in `report_by`).

        Raises UnknownRunError, and LedgerError for a time in the future.
        """
        known = None if as_of_ns is None else self.moment(as_of_ns)
        runs = self._runs(name, known)
        booked, stated, _ = self._booked(runs, known, self._now_ns() if known is None else known)
        entries = [*lease_entries(booked), *stated_entries(stated)]
        extent = sum(lease.ns for lease in booked) + sum(int(line.accelerator_ns or 0) for line in stated)
        return run_report(name, runs, entries, extent, self.prices.pricer(as_of_ns), places)

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
        """What counts on the days [first_day, end_day), by some of `lines.DIMENSIONS`, as
        known at `as_of_ns`.

        `name` restricts the report to a run or the runs of a pipeline. `idle` says who pays for idle and
        lost time (`sharing.METHODS`). The same question about a past time always has the same answer; a
        later time of today means now. Raises LedgerError for an unknown dimension or a later day.
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
        return report_by(counted, by, self.prices.pricer(as_of_ns), first_day, end_day, places)

    def mart_parts(self) -> list[Path]:
        """The Parquet files of the mart, after updating it; none for a ledger in memory."""
        return [] if self._mart is None else self._mart.parts()

    def close(self, month: str) -> Close:
        """Close a month. Raises LedgerStateError, UnknownPriceError or PriceBookError; see
        `Accounts.close`.
        """
        return self._accounts.close(month, self._now_ns())

    def closes(self, as_of_ns: int | None = None) -> list[Close]:
        """The months closed by `as_of_ns`, in order."""
        return self._archive.closes(as_of_ns)

    def verify(self) -> int:
        """Verify the hash chain of all postings. Returns the number of postings.

        Raises LedgerStateError at the first break.
        """
        closes = self._archive.closes()
        last = closes[-1].last_posting if closes else 0
        return verify(self._archive.postings(last), closes)

    def cost_so_far(self, run_id: str, as_of_ns: int | None = None) -> Decimal:
        """What the leases of the run have cost until now, in the currency of the price table, to 6 decimals.

        Only reads events that are new since the last call.
        """
        return rounded(self.spent_so_far(run_id, as_of_ns).amount, AMOUNT_PLACES)

    def spent_so_far(self, run_id: str, as_of_ns: int | None = None) -> Spent:
        """The money and time of the run's leases until now; reads as `cost_so_far` does."""
        as_of = self._now_ns() if as_of_ns is None else as_of_ns
        pricer = self.prices.pricer()
        meter, seq = self._meters.get(run_id) or (RunMeter(run_id, self._policy), 0)
        events: list[Event] = []
        for recorded in self._journal.events([run_id], after_seq=seq):
            events.append(recorded.event)
            seq = recorded.seq
        meter.take(events, pricer)
        self._meters[run_id] = (meter, seq)
        return self._spent(run_id, as_of, pricer) if meter.corrected else meter.spent(as_of, pricer)

    def cost_at(self, run_id: str, as_of_ns: int) -> Decimal:
        """What the leases of the run had cost at a time in the past. Reads all events of the run."""
        return rounded(self._spent(run_id, as_of_ns, self.prices.pricer()).amount, AMOUNT_PLACES)

    def knows(self, name: str) -> bool:
        """Whether a run or pipeline with that id exists."""
        return bool(self._journal.runs_of(name))

    def rejections(self, name: str) -> list[Rejection]:
        """The events of a run or pipeline that do not count, and why. Raises UnknownRunError."""
        return self._booked(self._runs(name), None, self._now_ns())[2]

    def runs_of(self, name: str, as_of_ns: int | None = None) -> list[str]:
        """The run `name`, or the runs of the pipeline `name`, as known at `as_of_ns`. Raises
        UnknownRunError.
        """
        return self._runs(name, as_of_ns)

    def events(self, runs: Collection[str] | None = None, as_of_ns: int | None = None) -> list[Event]:
        """The events that count, after corrections: all of them, or those about some runs."""
        known = self._journal.events(runs, known_by_ns=as_of_ns)
        return apply_corrections(recorded.event for recorded in known)[0]

    def counted(self, as_of_ns: int | None = None) -> Iterator[CountedLine]:
        """All lines that count, as known at `as_of_ns`: the basis of all reports."""
        if as_of_ns is None:
            return self._accounts.counted_now(self._now_ns())
        return self._accounts.counted(self.moment(as_of_ns))

    def reconcile_ray(
        self, recording: Recording, tolerance_ns: int, until_ns: int | None = None
    ) -> RayReconciliation:
        """Compare the lifetimes of actors in Ray's events with the leases that name them or their
        placement groups.

        Times at most `tolerance_ns` apart agree. Ray's events are assumed to be complete up to `until_ns`
        (None: up to the last event).
        """
        head = self._journal.head()
        leases = leases_to_compare(recording, self._journal.changed_leases(0, head))
        corrections = (
            event for event in self._journal.events_without_lease(0, head) if isinstance(event, Correction)
        )
        events = [*corrections, *self._journal.of_leases(leases, head)]
        return reconcile_ray(events, recording, tolerance_ns, self._now_ns(), self._policy, until_ns)

    def moment(self, as_of_ns: int) -> int:
        """Normalise a time that a report is about: a later time of today means now, as in `--as-of <today>`.

        Raises LedgerError for a later day.
        """
        now = self._now_ns()
        if day_of(as_of_ns) > day_of(now):
            raise LedgerError("as-of", str(as_of_ns), f"{now} or earlier", "the future is unknown")
        return min(as_of_ns, now)

    def waste(self, name: str, places: int = AMOUNT_PLACES) -> WasteReport:
        """What a run, or the runs of a pipeline, paid for without a result.

        Raises UnknownRunError, UnknownPriceError.
        """
        booked, labels = self._booked_with_labels(name)
        return waste_report(booked, labels, self.prices.pricer(), places)

    def unit_costs(
        self, name: str, counts: Mapping[str, Fraction], places: int = AMOUNT_PLACES
    ) -> tuple[UnitCost, ...]:
        """The cost of a run, or of the runs of a pipeline, per token and per unit in `counts`
        (name to number).

        Raises UnknownRunError, UnknownPriceError.
        """
        booked, _ = self._booked_with_labels(name)
        amount = self._amount(booked)
        return unit_costs(amount, token_units(booked) | dict(counts), places)

    def completion(self, run_id: str, steps: int) -> Completion:
        """The forecast cost of a run after `steps` steps.

        Raises UnknownRunError, and LedgerError before its second step.
        """
        booked, _ = self._booked_with_labels(run_id)
        return completion(run_id, booked, self._amount(booked), steps, self.prices.pricer())

    def variances(self, places: int = 2) -> list[Variance]:
        """Compare each budget with what counts in its scope. Raises LedgerError for a budget in
        another currency.
        """
        budgets = self._budgets.budgets()
        lines = list(self._accounts.counted_now(self._now_ns(), SCOPE_FIELDS)) if budgets else []
        return [variance(budget, lines, self.prices.pricer(), self._now_ns(), places) for budget in budgets]

    def _booked_with_labels(self, name: str) -> tuple[list[BookedLease], dict[str, Labels]]:
        """The leases used by the runs of `name`, reduced to that use, and the labels of those runs."""
        runs = self._runs(name)
        events = self.events(runs)
        booked, _ = book(events, self._now_ns(), self._policy)
        kept = [
            replace(lease, slices=tuple(piece for piece in lease.slices if piece.run_id in runs))
            for lease in booked
        ]
        return [lease for lease in kept if lease.slices], labels_of(events)

    def _amount(self, booked: Sequence[BookedLease]) -> Fraction:
        pricer = self.prices.pricer()
        return sum((pricer.amount(entry) for entry in lease_entries(booked)), Fraction(0))

    @property
    def budgets(self) -> Budgets:
        """The budgets: reserve, settle, void, expire."""
        return Budgets(self._budgets, self._now_ns)

    def bad_lines(self) -> list[BadLine]:
        """The lines that were not events, with file and line number."""
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
        stated = [event for event in apply_corrections(events)[0] if isinstance(event, UsageStated)]
        return booked, stated, rejected


def _price_book(source: AnyPriceBook) -> PriceBook:
    if isinstance(source, PriceBook):
        return source
    return PriceBook.load(source) if isinstance(source, Path) else PriceBook.parse(source)
