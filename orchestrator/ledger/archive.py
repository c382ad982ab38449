"""The archive: adopted price books and closed months. Append-only.

A *posting* is a line of a closed month with its price. Postings are chained by hash, so that any later
change is detectable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orchestrator.ledger.errors import LedgerStateError
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.prices import PriceBook

GENESIS = "0" * 64
"""The hash that the first posting is chained to."""


class Posting(NamedTuple):
    """`ns` of time (negative for a reversal) of the kind `key`, posted in the month `period`.

    `key.unit_price` is the exact price of an accelerator-hour (a fraction as text) in `key.currency`. `hash`
    covers the posting and, through the previous hash, all earlier ones.
    """

    number: int
    period: str
    key: LineKey
    ns: int
    hash: str


@dataclass(frozen=True, slots=True)
class AdoptedBook:
    """A price book and the time it was adopted; a larger number is newer."""

    number: int
    recorded_ns: int
    digest: str
    book: PriceBook


@dataclass(frozen=True, slots=True)
class Close:
    """A closed month. It includes the events up to `through_seq` and the price books up to number `prices`.
    Its last posting has the number `last_posting` and the hash `head`.
    """

    period: str
    closed_ns: int
    through_seq: int
    prices: int
    postings: int
    last_posting: int
    head: str


class Archive(Protocol):
    """Port: stores price books and closed months."""

    def adopt(self, book: PriceBook) -> bool:
        """Make a price book the newest, unless the newest book of that name is identical. Returns
        whether it was added.
        """
        ...

    def price_books(self, known_by_ns: int | None = None) -> list[AdoptedBook]:
        """The adopted price books, newest first."""
        ...

    def closes(self, known_by_ns: int | None = None) -> list[Close]:
        """The closed months, in order."""
        ...

    def postings(self, last: int, leases: Collection[str] | None = None) -> Iterator[Posting]:
        """The postings up to number `last`, in order: all of them, or only those of the given leases."""
        ...

    def post(self, close: Close, postings: Sequence[Posting]) -> None:
        """Close a month atomically.

        Raises LedgerStateError if it is already closed or another month was closed in the meantime.
        """
        ...


def digest_of(book: PriceBook) -> str:
    """SHA-256 of the book's canonical JSON."""
    return hashlib.sha256(book.to_json().encode()).hexdigest()


def chain(lines: Iterable[tuple[LineKey, int]], period: str, number: int, head: str) -> Iterator[Posting]:
    """Turn lines into postings, numbered from `number` + 1 and chained to `head`."""
    for key, ns in lines:
        number += 1
        head = link(head, number, period, key, ns)
        yield Posting(number, period, key, ns, head)


def link(head: str, number: int, period: str, key: LineKey, ns: int) -> str:
    """The hash of a posting: SHA-256 over the previous hash and the content of the posting."""
    content = json.dumps([number, period, *key, str(ns)], separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{head}\n{content}".encode()).hexdigest()


def verify(postings: Iterable[Posting], closes: Sequence[Close]) -> int:
    """Verify the chain and the head of every close. Returns the number of postings.

    Raises LedgerStateError at the first break.
    """
    heads = {close.last_posting: close for close in closes}
    head, number = GENESIS, 0
    for posting in postings:
        number += 1
        head = link(head, number, posting.period, posting.key, posting.ns)
        if (posting.number, posting.hash) != (number, head):
            raise LedgerStateError(
                f"The hash chain is broken at posting {posting.number}: it has the hash {posting.hash}, but"
                f" its content has the hash {head}."
            )
        close = heads.pop(number, None)
        if close is not None and close.head != head:
            raise LedgerStateError(
                f"The hash chain is broken at the close of {close.period}: it states the hash {close.head},"
                f" but its last posting has the hash {head}."
            )
    missing = [close for close in heads.values() if close.last_posting > number]
    if missing:
        raise LedgerStateError(
            f"The close of {missing[0].period} ends with posting {missing[0].last_posting}, but there are"
            f" only {number} postings."
        )
    return number


class MemoryArchive:
    """The in-memory fake of `Archive`, for tests."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._books: list[AdoptedBook] = []
        self._closes: list[Close] = []
        self._postings: list[Posting] = []

    def adopt(self, book: PriceBook) -> bool:
        digest = digest_of(book)
        same_name = [known.digest for known in self._books if known.book.name == book.name]
        if same_name and same_name[-1] == digest:
            return False
        self._books.append(AdoptedBook(len(self._books) + 1, self._now_ns(), digest, book))
        return True

    def price_books(self, known_by_ns: int | None = None) -> list[AdoptedBook]:
        return [
            book for book in reversed(self._books) if known_by_ns is None or book.recorded_ns <= known_by_ns
        ]

    def closes(self, known_by_ns: int | None = None) -> list[Close]:
        return [close for close in self._closes if known_by_ns is None or close.closed_ns <= known_by_ns]

    def postings(self, last: int, leases: Collection[str] | None = None) -> Iterator[Posting]:
        for posting in self._postings[:last]:
            if leases is None or posting.key.lease_id in leases:
                yield posting

    def post(self, close: Close, postings: Sequence[Posting]) -> None:
        require_next(close, self._closes)
        self._postings.extend(postings)
        self._closes.append(close)


def require_next(close: Close, closes: Sequence[Close]) -> None:
    """Raise LedgerStateError unless `close` follows the closes so far."""
    if any(known.period == close.period for known in closes):
        raise LedgerStateError(f"Month {close.period} is already closed.", key="month", value=close.period)
    before = closes[-1].last_posting if closes else 0
    if close.last_posting - close.postings != before:
        raise LedgerStateError(
            f"Month {close.period} was not closed: another month was closed in the meantime.", "Try again."
        )
