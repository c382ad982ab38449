"""Decides which lines count in which month: the postings of closed months, and everything the journal says
about open ones.

    counted(X) = postings of the months closed by X
               + lines of the open months, from the events known by X
               + pending adjustments: what those events say about closed months,
                 minus what was posted for them

The sum over all months therefore always equals what the events say. A closed month never changes. Events
that arrive later count in the first open month as adjustments, and are posted when that month closes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from orchestrator.ledger.archive import GENESIS, Archive, Close, chain
from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.calendar import DAY_NS, date_of, following_month, month_bounds
from orchestrator.ledger.derive import lines_from_events
from orchestrator.ledger.errors import LedgerError, LedgerStateError, UnknownPriceError
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.lines import LineKey, Lines, add, keep_fields, left_out, subtract
from orchestrator.ledger.mart import Mart
from orchestrator.ledger.prices import PriceTable
from orchestrator.ledger.pricing import Pricer


class CountedLine(NamedTuple):
    """`ns` of time of the kind `key` that counts in the month `posted`. For an adjustment, `posted` is later
    than the month of its day.
    """

    posted: str
    key: LineKey
    ns: int

    @property
    def day(self) -> int:
        """The day the line counts on: its own day, or for an adjustment the first day of the
        month it counts in.
        """
        return self.key.day if self.key.month == self.posted else month_bounds(self.posted)[0]

    @property
    def kind(self) -> str:
        """`usage` or `adjustment`."""
        return "usage" if self.key.month == self.posted else "adjustment"


class Accounts:
    """Combines the journal and the archive, and reads through the mart where there is one."""

    def __init__(
        self, journal: Journal, archive: Archive, policy: BookingPolicy, mart: Mart | None = None
    ) -> None:
        self._journal, self._archive, self._policy, self._mart = journal, archive, policy, mart

    def counted(self, as_of_ns: int, keep: Collection[str] = LineKey._fields) -> Iterator[CountedLine]:
        """All lines that count, as known at `as_of_ns`.

        The answer depends only on the journal, so the same question later gives the same answer. Fields
        outside `keep` are left empty and the lines merged.
        """
        events = (recorded.event for recorded in self._journal.events(known_by_ns=as_of_ns))
        lines = keep_fields(lines_from_events(events, as_of_ns, self._policy), keep)
        return self._counted(lines, self._archive.closes(as_of_ns), keep)

    def counted_now(self, now_ns: int, keep: Collection[str] = LineKey._fields) -> Iterator[CountedLine]:
        return self._counted(self._lines_now(now_ns, keep)[1], self._archive.closes(), keep)

    def _lines_now(self, now_ns: int, keep: Collection[str]) -> tuple[int, Lines]:
        """All lines now, and the sequence number of the last event they include."""
        found = None if self._mart is None else self._mart.lines(now_ns, keep)
        if found is not None:
            return found
        through = self._journal.head()
        events = (recorded.event for recorded in self._journal.events(through_seq=through))
        return through, keep_fields(lines_from_events(events, now_ns, self._policy), keep)

    def _counted(self, lines: Lines, closes: Sequence[Close], keep: Collection[str]) -> Iterator[CountedLine]:
        if not closes:
            for key, ns in lines.items():
                yield CountedLine(key.month, key, ns)
            return
        blanks = left_out(keep)
        posted: Lines = {}
        for posting in self._archive.postings(closes[-1].last_posting):
            key = posting.key._replace(**blanks)
            posted[key] = posted.get(key, 0) + posting.ns
            yield CountedLine(posting.period, key, posting.ns)
        first_open = following_month(closes[-1].period)
        first_open_day = month_bounds(first_open)[0]
        about_closed: Lines = {}
        for key, ns in lines.items():
            if key.day >= first_open_day:
                yield CountedLine(key.month, key, ns)
            else:
                about_closed[key] = ns
        frozen = self.frozen_prices(closes)
        for key, ns in subtract(price_lines(about_closed, frozen, keep_unpriced=True), posted).items():
            yield CountedLine(first_open, key, ns)

    def frozen_prices(self, closes: Iterable[Close]) -> Mapping[str, Pricer]:
        """The prices that each closed month was closed with."""
        adopted = self._archive.price_books()
        tables: dict[int, Pricer] = {}
        frozen: dict[str, Pricer] = {}
        for close in closes:
            if close.prices not in tables:
                books = [known.book for known in adopted if known.number <= close.prices]
                tables[close.prices] = Pricer(PriceTable(books))
            frozen[close.period] = tables[close.prices]
        return frozen

    def close(self, month: str, now_ns: int) -> Close:
        """Close a month: post what counts in it, with its prices.

        Raises LedgerStateError if the month is not over yet, is already closed, or does not follow the last
        closed month. A month is over `grace` after its last day, because until then a lease can still be
        found lost. Raises UnknownPriceError or PriceBookError if something in the month has no price.
        """
        closes = self._archive.closes()
        self._require_closable(month, closes, now_ns)
        head, last = (closes[-1].head, closes[-1].last_posting) if closes else (GENESIS, 0)
        books = self._archive.price_books()
        pricer = Pricer(PriceTable([known.book for known in books]))
        through, due = self._due(month, closes, now_ns, pricer)
        postings = list(chain(sorted(due.items()), month, last, head))
        close = Close(
            month,
            now_ns,
            through,
            books[0].number,
            len(postings),
            last + len(postings),
            postings[-1].hash if postings else head,
        )
        self._archive.post(close, postings)
        return close

    def _due(self, month: str, closes: list[Close], now_ns: int, pricer: Pricer) -> tuple[int, Lines]:
        """The last event known, and the lines to post: all lines up to the end of the month, minus what was
        already posted.
        """
        end_day = month_bounds(month)[1]
        through, known = self._lines_now(now_ns, LineKey._fields)
        lines = {key: ns for key, ns in known.items() if key.day < end_day}
        posted: Lines = {}
        if closes:
            postings = self._archive.postings(closes[-1].last_posting)
            add(posted, ((posting.key, posting.ns) for posting in postings))
        frozen = dict(self.frozen_prices(closes))
        for key in lines:
            frozen.setdefault(key.month, pricer)
        return through, subtract(price_lines(lines, frozen), posted)

    def _require_closable(self, month: str, closes: list[Close], now_ns: int) -> None:
        try:
            end_ns = month_bounds(month)[1] * DAY_NS + self._policy.grace_ns
        except ValueError as error:
            raise LedgerError("month", month, "YYYY-MM") from error
        if any(close.period == month for close in closes):
            raise LedgerStateError(f"Month {month} is already closed.", key="month", value=month)
        if closes and following_month(closes[-1].period) != month:
            due = following_month(closes[-1].period)
            raise LedgerStateError(
                f"Months close in order: {due} comes before {month}.", key="month", value=month
            )
        if now_ns < end_ns:
            minutes = self._policy.grace_ns // 60_000_000_000
            raise LedgerStateError(
                f"Month {month} is not over yet: on {date_of(now_ns // DAY_NS)} it cannot be closed.",
                f"Leases can be found lost until {minutes} minutes after it ended.",
                key="month",
                value=month,
            )


def price_lines(lines: Lines, prices: Mapping[str, Pricer], keep_unpriced: bool = False) -> Lines:
    """Lines with the exact price of their month in the key, as postings store them.

    A line without a price is left as it is if `keep_unpriced`; otherwise raises UnknownPriceError or
    PriceBookError.
    """
    priced: Lines = {}
    for key, ns in lines.items():
        pricer = prices.get(key.month)
        try:
            if pricer is None:
                raise UnknownPriceError("month", key.month, ", ".join(prices))
            unit_price: Fraction = pricer.unit_price(key)
        except LedgerError:
            if not keep_unpriced:
                raise
            priced[key] = priced.get(key, 0) + ns
            continue
        exact = key._replace(unit_price=str(unit_price), currency=pricer.table.currency)
        priced[exact] = priced.get(exact, 0) + ns
    return priced
