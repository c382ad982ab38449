"""The archive: the price books the ledger was given, and the months that were closed. Append-only.

A *posting* is a line of a closed month with its price, chained to the one before it by a hash, so that a
change anywhere shows.
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
"""What the first posting is chained to."""


class Posting(NamedTuple):
    """`ns` (negative for a reversal) of the kind `key`, posted in the month `period`.

    `key.unit_price` is the exact price an accelerator-hour (a fraction as text) in `key.currency`. `hash`
    covers it and, through the hash before it, all earlier postings.
    """

    number: int
    period: str
    key: LineKey
    ns: int
    hash: str


@dataclass(frozen=True, slots=True)
class AdoptedBook:
    """A price book and when the ledger was given it; a larger number is newer."""

    number: int
    recorded_ns: int
    digest: str
    book: PriceBook


@dataclass(frozen=True, slots=True)
class Close:
    """A closed month. It knows the events up to `through_seq` and the price books up to number `prices`; its
    postings end with number `last_posting`, whose hash is `head`.
    """

    period: str
    closed_ns: int
    through_seq: int
    prices: int
    postings: int
    last_posting: int
    head: str


class Archive(Protocol):
    """Where price books and closed months are kept."""

    def adopt(self, book: PriceBook) -> bool:
        """Make a price book the newest, unless the newest of its name is equal. Says whether it did."""
        ...

    def price_books(self, known_by_ns: int | None = None) -> list[AdoptedBook]:
        """The adopted price books, the newest first."""
        ...

    def closes(self, known_by_ns: int | None = None) -> list[Close]:
        """The closed months, in order."""
        ...

    def postings(self, last: int, leases: Collection[str] | None = None) -> Iterator[Posting]:
        """The postings up to number `last`, in order: all, or those of some leases."""
        ...

    def post(self, close: Close, postings: Sequence[Posting]) -> None:
        """Close a month, all or nothing.

        Raises LedgerStateError if it is closed, or another month was closed meanwhile.
        """
        ...


def digest_of(book: PriceBook) -> str:
    """SHA-256 of the book's canonical JSON."""
    return hashlib.sha256(book.to_json().encode()).hexdigest()


def chain(lines: Iterable[tuple[LineKey, int]], period: str, number: int, head: str) -> Iterator[Posting]:
    """Postings of lines, numbered from `number` + 1 and chained to `head`."""
    for key, ns in lines:
        number += 1
        head = link(head, number, period, key, ns)
        yield Posting(number, period, key, ns, head)


def link(head: str, number: int, period: str, key: LineKey, ns: int) -> str:
    """The hash of a posting: SHA-256 over the hash before it and the posting's content."""
    content = json.dumps([number, period, *key, str(ns)], separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{head}\n{content}".encode()).hexdigest()


def verify(postings: Iterable[Posting], closes: Sequence[Close]) -> int:
    """Check the chain and every close's head. Returns how many postings there are.

    Raises LedgerStateError at the first break.
    """
    heads = {close.last_posting: close for close in closes}
    head, number = GENESIS, 0
    for posting in postings:
        number += 1
        head = link(head, number, posting.period, posting.key, posting.ns)
        if (posting.number, posting.hash) != (number, head):
            raise LedgerStateError(
                f"posting {posting.number}", posting.hash, head, "the chain is broken here"
            )
        close = heads.pop(number, None)
        if close is not None and close.head != head:
            raise LedgerStateError(f"close of {close.period}", close.head, head, "the chain is broken here")
    missing = [close for close in heads.values() if close.last_posting > number]
    if missing:
        raise LedgerStateError(
            f"close of {missing[0].period}", f"{number} postings", str(missing[0].last_posting)
        )
    return number


class MemoryArchive:
    """An archive in lists: the fake of the port, for tests."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._books: list[AdoptedBook] = []
        self._closes: list[Close] = []
        self._postings: list[Posting] = []

    def adopt(self, book: PriceBook) -> bool:
        """Make a price book the newest, unless the newest of its name is equal."""
        digest = digest_of(book)
        same_name = [known.digest for known in self._books if known.book.name == book.name]
        if same_name and same_name[-1] == digest:
            return False
        self._books.append(AdoptedBook(len(self._books) + 1, self._now_ns(), digest, book))
        return True

    def price_books(self, known_by_ns: int | None = None) -> list[AdoptedBook]:
        """The adopted price books, the newest first."""
        return [
            book for book in reversed(self._books) if known_by_ns is None or book.recorded_ns <= known_by_ns
        ]

    def closes(self, known_by_ns: int | None = None) -> list[Close]:
        """The closed months, in order."""
        return [close for close in self._closes if known_by_ns is None or close.closed_ns <= known_by_ns]

    def postings(self, last: int, leases: Collection[str] | None = None) -> Iterator[Posting]:
        """The postings up to number `last`, in order."""
        for posting in self._postings[:last]:
            if leases is None or posting.key.lease_id in leases:
                yield posting

    def post(self, close: Close, postings: Sequence[Posting]) -> None:
        """Close a month, all or nothing."""
        require_next(close, self._closes)
        self._postings.extend(postings)
        self._closes.append(close)


def require_next(close: Close, closes: Sequence[Close]) -> None:
    """Refuse a close that does not follow the closes there are. Raises LedgerStateError."""
    if any(known.period == close.period for known in closes):
        raise LedgerStateError("month", close.period, "a month that is open", "it is closed already")
    before = closes[-1].last_posting if closes else 0
    if close.last_posting - close.postings != before:
        raise LedgerStateError(
            "month", close.period, "closes one after the other", "another month was closed meanwhile"
        )
