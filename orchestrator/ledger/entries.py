"""Entries: what reports count.

An entry is `ns` of time of one accelerator on one day, for one run, role and activity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from orchestrator.ledger.booking import BookedLease
from orchestrator.ledger.calendar import cut_at_midnight, day_of
from orchestrator.ledger.events import UsageStated


class Entry(NamedTuple):
    """`day` counts from 1970-01-01 UTC.

    `unit_price` (money per accelerator-hour, in `currency`) is empty if the price book determines it.
    """

    day: int
    run_id: str
    attempt: int
    lease_id: str
    node: str
    resource: str
    sku: str
    region: str
    commitment: str
    role: str
    activity: str
    start_ns: int
    end_ns: int
    ns: int
    unit_price: str
    currency: str


def lease_entries(booked: Iterable[BookedLease]) -> Iterator[Entry]:
    """The entries of booked leases, one per slice."""
    for lease in booked:
        opened = lease.opened
        for piece in lease.slices:
            yield Entry(
                day_of(piece.start_ns),
                piece.run_id,
                opened.attempt,
                opened.lease_id,
                opened.node,
                opened.resource,
                opened.sku,
                opened.region,
                opened.commitment,
                piece.role,
                piece.activity,
                piece.start_ns,
                piece.end_ns,
                piece.ns,
                "",
                "",
            )


def stated_entries(stated: Iterable[UsageStated]) -> Iterator[Entry]:
    """The entries of imported usage: the quantity of each line, spread evenly over its days in whole
    nanoseconds. A line without a published quantity has none.
    """
    for line in stated:
        if not line.accelerator_ns:
            continue
        quantity, length = int(line.accelerator_ns), line.end_ns - line.start_ns
        pieces = list(cut_at_midnight(line.start_ns, line.end_ns)) or [(line.start_ns, line.end_ns)]
        booked = 0
        for start, end in pieces:
            upto = quantity * (end - line.start_ns) // length if length else quantity
            yield Entry(
                day_of(start),
                line.run_id,
                0,
                line.event_id,
                line.node,
                line.resource,
                line.sku,
                line.region,
                line.commitment,
                line.role,
                line.activity,
                start,
                end,
                upto - booked,
                line.unit_price,
                line.currency,
            )
            booked = upto
