"""What the ledger refuses, under one picklable base of its own (the ledger imports nothing else of this
project).

Each error names what was wrong (`key`: a config key, a column, `file:row`), what was got, what is allowed,
and a remedy where there is one.
"""

from __future__ import annotations


class LedgerError(Exception):
    """Base of all errors that the ledger raises on purpose.

    >>> print(LedgerError("prices[2].to", "2025-05-01", "2025-06-01", "the next price starts then"))
    prices[2].to: got 2025-05-01, allowed: 2025-06-01 (the next price starts then)
    """

    def __init__(self, key: str, value: str, allowed: str, hint: str = "") -> None:
        super().__init__(key, value, allowed, hint)
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.key}: got {self.value}, allowed: {self.allowed}{tail}"


class MalformedEventError(LedgerError):
    """An event with a missing field, a field of the wrong type, a negative duration or an unknown type or
    schema.
    """


class PriceBookError(LedgerError):
    """A price book with a gap, an overlap, a missing source or date, or a currency without a rate."""


class UnknownPriceError(LedgerError):
    """No price for a SKU on a day."""


class UnknownRunError(LedgerError):
    """The journal holds no run and no pipeline of that id."""


class LedgerUnavailableError(LedgerError):
    """The store can't be reached, or refused what it was told.

    Nothing was lost: spools stay where they are.
    """


class LedgerReadOnlyError(LedgerUnavailableError):
    """The store can be read but not written: a read-only mount, a full disk, no permission."""


class LedgerStateError(LedgerError):
    """The store is not in the state that the operation needs (a closed month, a newer schema, a broken hash
    chain).
    """
