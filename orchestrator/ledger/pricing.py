"""Prices entries and lines, exactly."""

from __future__ import annotations

from fractions import Fraction

from orchestrator.ledger.entries import Entry
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.money import hours
from orchestrator.ledger.prices import PriceTable


class Pricer:
    """Caches the price of each (SKU, region, commitment, day)."""

    def __init__(self, table: PriceTable) -> None:
        self.table = table
        self._per_hour: dict[tuple[str, str, str, int], Fraction | LedgerError] = {}

    def per_hour(self, sku: str, region: str, commitment: str, day: int) -> Fraction:
        """Price of an accelerator-hour in the currency of the table. Raises UnknownPriceError,
        PriceBookError.
        """
        key = (sku, region, commitment, day)
        found = self._per_hour.get(key)
        if found is None:
            try:
                found = self.table.price(sku, day, region, commitment).per_hour
            except LedgerError as error:
                found = error
            self._per_hour[key] = found
        if isinstance(found, LedgerError):
            raise found
        return found

    def unit_price(self, line: Entry | LineKey) -> Fraction:
        """Price of an accelerator-hour of an entry or line: its own price if it states one, else
        that of the table.

        Raises UnknownPriceError for a SKU or day without a price, PriceBookError for a currency without
        an exchange rate.
        """
        if line.unit_price:
            return self.table.convert(Fraction(line.unit_price), line.currency, line.day)
        return self.per_hour(line.sku, line.region, line.commitment, line.day)

    def amount(self, entry: Entry) -> Fraction:
        """The cost of an entry. Raises as `unit_price` does."""
        return hours(entry.ns) * self.unit_price(entry)
