"""Errors of the ledger, under one picklable base of its own, because the ledger imports nothing else
of this project.

An error about an input names its key, the value and what is allowed. An error about a state is a sentence.
"""

from __future__ import annotations

from decimal import Decimal


class LedgerError(Exception):
    """Base of all errors that the ledger raises deliberately.

    `key` is what was wrong: a config key, a column or `file:row`.

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
    """An event with a missing field, a field of the wrong type, a negative duration, or an unknown
    type or schema.
    """


class PriceBookError(LedgerError):
    """A price book with a gap, an overlap, a missing source or date, or no exchange rate for a currency."""


class UnknownPriceError(LedgerError):
    """There is no price for a SKU on a day."""


class _SentenceError(LedgerError):
    """An error whose message is a sentence. `hint`, another sentence, says what to do.

    `key`, `value` and `allowed` are for programs, where they make sense.

    >>> print(LedgerStateError("Month 2026-01 is still open.", "Close it first."))
    Month 2026-01 is still open. Close it first.
    """

    def __init__(
        self, sentence: str, hint: str = "", key: str = "", value: str = "", allowed: str = ""
    ) -> None:
        super().__init__(key, value, allowed, hint)
        self.args = (sentence, hint, key, value, allowed)
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.sentence} {self.hint}".rstrip()


class LedgerStateError(_SentenceError):
    """The store is not in the state that the operation needs: a closed month, a newer schema, a
    broken hash chain.
    """


class ReservationEndedError(LedgerStateError):
    """The reservation was settled, voided or has expired (`how`); `spent` is what was settled of it."""

    def __init__(self, reservation: str, how: str, spent: Decimal) -> None:
        super().__init__(f"Reservation {reservation} has already ended ({how}).")
        self.args = (reservation, how, spent)
        self.spent = spent


class UnknownRunError(_SentenceError):
    """The journal contains no run and no pipeline with that id."""

    def __init__(self, name: str) -> None:
        sentence, hint = f"The ledger has no run or pipeline {name!r}.", "Was its spool shipped?"
        super().__init__(sentence, hint, "run", name, "a run or pipeline in the ledger")
        self.args = (name,)


class LedgerUnavailableError(_SentenceError):
    """The store, or a cluster to be observed, cannot be reached or rejected a request.

    Nothing is lost: spool files stay where they are.
    """


class LedgerReadOnlyError(LedgerUnavailableError):
    """The store can be read but not written: a read-only mount, a full disk, missing permission."""
