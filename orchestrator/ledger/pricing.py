"""Entries times prices, exact."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from orchestrator.ledger.entries import Entry
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.money import hours
from orchestrator.ledger.prices import PriceBook


class Pricer:
    """Looks each (SKU, region, commitment, day) up once."""

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self._per_hour: dict[tuple[str, str, str, int], Fraction | LedgerError] = {}

    def per_hour(self, sku: str, region: str, commitment: str, day: int) -> Fraction:
        """Money an accelerator-hour, in the book's currency. Raises UnknownPriceError, PriceBookError."""
        key = (sku, region, commitment, day)
        found = self._per_hour.get(key)
        if found is None:
            try:
                found = self.book.price(sku, day, region, commitment).per_hour
            except LedgerError as error:
                found = error
            self._per_hour[key] = found
        if isinstance(found, LedgerError):
            raise found
        return found

    def amount(self, entry: Entry) -> Fraction:
        """Money for an entry.

        Raises UnknownPriceError for a SKU or day without a price, PriceBookError for a currency without a
        rate.
        """
        if entry.unit_price:
            stated = hours(entry.ns) * Fraction(Decimal(entry.unit_price))
            return self.book.convert(stated, entry.currency, entry.day)
        return hours(entry.ns) * self.per_hour(entry.sku, entry.region, entry.commitment, entry.day)
