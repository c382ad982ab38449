"""The prices of a ledger: the price books that it has adopted, newest first."""

from __future__ import annotations

from orchestrator.ledger.archive import Archive
from orchestrator.ledger.prices import PriceBook, PriceTable
from orchestrator.ledger.pricing import Pricer


class AdoptedPrices:
    """The price books of an archive, or `only_book` instead of them."""

    def __init__(self, archive: Archive, only_book: PriceBook | None = None) -> None:
        self._archive, self._only_book = archive, only_book
        self._pricer_now: Pricer | None = None

    def books(self, as_of_ns: int | None = None) -> list[PriceBook]:
        """The price books adopted by `as_of_ns`, newest first."""
        return [adopted.book for adopted in self._archive.price_books(as_of_ns)]

    def rows(self) -> list[dict[str, str | None]]:
        """Every price that reports use, as plain JSON: by book (newest first), SKU and time."""
        return [row for book in self._table(None).books for row in book.rows()]

    def offer(self, price_book: PriceBook) -> bool:
        """Adopt the price book of a run, as far as it prices something that no adopted book does and uses the
        ledger's currency. Returns whether anything was new.

        Existing prices never change this way: only `adopt`, an explicit decision, changes them.
        """
        adopted = self.books()
        if not adopted:
            return self.adopt(price_book)
        new = price_book.without(frozenset(series for book in adopted for series in book.series()))
        if new is None or adopted[0].currency != new.currency:
            return False
        return self.adopt(new)

    def adopt(self, price_book: PriceBook) -> bool:
        """Make a price book the newest, unless the newest book of that name is identical.

        Returns whether anything changed.
        """
        self._pricer_now = None
        return self._archive.adopt(price_book)

    def pricer(self, as_of_ns: int | None = None) -> Pricer:
        """The prices that reports use, as known at `as_of_ns`."""
        if as_of_ns is not None:
            return Pricer(self._table(as_of_ns))
        if self._pricer_now is None:
            self._pricer_now = Pricer(self._table(None))
        return self._pricer_now

    def _table(self, as_of_ns: int | None) -> PriceTable:
        return PriceTable(self.books(as_of_ns) if self._only_book is None else [self._only_book])
